// The pair arithmetic over tiles: OpenMP over rows, SIMD over columns.
//
// A row of a tile is taken in chunks of CHUNK columns that stay in the L1 cache, and a chunk goes through stages:
//   distance      p_i, q_j          → h, lag
//   correlation   lag               → ρ          one loop per structure of the variogram
//   logits        ⟨x̂, y⟩, ⟨v̂, u⟩, h, ρ → l, a or f   one loop per policy
//   row sums      l, f              → max, Σexp(l − max), Σl, Σf, Σf·l
// Every loop is free of branches and vectorised; the choice of kind stands outside of it. Sums are float32 in a
// chunk and float64 across. A row belongs to one thread and its chunks are taken in order, so that the results do
// not depend on the number of threads.
//
// This file is compiled once per instruction set with SEMIVARIO_ISA naming it. It calls no inline function of the
// standard library: the linker would keep one copy of it for all, compiled for a processor that may not be there.
#include "tile_kernels.h"

#include <cmath>

#include "../geometry.h"
#include "isa.h"

namespace semivario {
namespace {

constexpr int CHUNK = 512;
constexpr int ROWS_AT_ONCE = 8;      // share the chunk's part of the gallery
constexpr int COLUMNS_AT_ONCE = 128; // of the columns' sums
constexpr int ROWS_PER_FLUSH = 64;   // float32 partial sums of the columns
constexpr std::int64_t WORTH_THREADS = 16384;  // pairs; fewer cost less than waking the threads

using In = const float* SEMIVARIO_RESTRICT;
using Out = float* SEMIVARIO_RESTRICT;

struct Span {
    std::int64_t start;
    int size;
};

Span chunk_at(std::int64_t start, std::int64_t end, int most) {
    const std::int64_t left = end - start;
    return {start, static_cast<int>(left < most ? left : most)};
}

template <bool wants_arc, bool wants_chord, typename T>
void distance_stage(const T* SEMIVARIO_RESTRICT p, const T* SEMIVARIO_RESTRICT qx, const T* SEMIVARIO_RESTRICT qy,
                    const T* SEMIVARIO_RESTRICT qz, int n, T* SEMIVARIO_RESTRICT h, Out chord) {
    const T px = p[0], py = p[1], pz = p[2];
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        const T near = squared_norm(px - qx[j], py - qy[j], pz - qz[j]);
        const T far = squared_norm(px + qx[j], py + qy[j], pz + qz[j]);
        if constexpr (wants_arc) h[j] = great_circle_km(near, far);
        if constexpr (wants_chord) chord[j] = chord_km(near);
    }
}

template <VariogramKind kind, bool first>
void add_structure(const Structure& structure, In lag, int n, Out rho) {
    const float share = structure.share, inverse = structure.inverse_len_scale, alpha = structure.alpha;
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        const float part = share * kind_correlation<kind>(lag[j] * inverse, alpha);
        rho[j] = first ? part : rho[j] + part;
    }
}

template <bool first>
void add_structure(const Structure& s, In lag, int n, Out rho) {
    switch (s.kind) {
        case VariogramKind::stable: return add_structure<VariogramKind::stable, first>(s, lag, n, rho);
        case VariogramKind::exponential: return add_structure<VariogramKind::exponential, first>(s, lag, n, rho);
        case VariogramKind::gaussian: return add_structure<VariogramKind::gaussian, first>(s, lag, n, rho);
        case VariogramKind::spherical: return add_structure<VariogramKind::spherical, first>(s, lag, n, rho);
        case VariogramKind::matern32: return add_structure<VariogramKind::matern32, first>(s, lag, n, rho);
    }
}

void correlation_stage(const Variogram& variogram, In lag, int n, Out rho) {
    add_structure<true>(variogram.structures[0], lag, n, rho);
    for (int k = 1; k < variogram.count; ++k) add_structure<false>(variogram.structures[k], lag, n, rho);
}

// What the logits of a chunk are made of; null where the policy does not read it.
struct ChunkInputs {
    const float *inverse_y, *vu, *inverse_u, *h, *rho;
    float row_image;  // 0 where the query has no image
};

// l in place of dot; `extra` is a (penalty) or f (rectify).
template <PolicyKind kind, bool features>
void logits_stage(const LossConstants& loss, const ChunkInputs& inputs, int n, Out l, Out extra) {
    const Policy policy = loss.policy;
    const float row_image = inputs.row_image;
    const float scale = loss.scale, nugget = loss.variogram.nugget, psill = loss.variogram.psill;
    In inverse_y = inputs.inverse_y, vu = inputs.vu, inverse_u = inputs.inverse_u, h = inputs.h, rho = inputs.rho;
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        const float dot = l[j];
        const float cos = dot * inverse_y[j];
        float d = 0.0f, rho_j = 0.0f, gamma = 0.0f;
        if constexpr (reads_dissimilarity(kind)) {
            rho_j = rho[j];
            gamma = semivariance(nugget, psill, rho_j);
            if constexpr (features) {
                d = 1.0f - cos;
            } else {
                d = positive_part(1.0f - vu[j] * inverse_u[j]);
                d = d > 2.0f ? 2.0f : d;
                d = inverse_u[j] * row_image != 0.0f ? d : blank_dissimilarity<kind>();
            }
        }
        const PairTerms terms = pair_terms<kind>(policy, reads_arc(kind) ? h[j] : 0.0f, d, gamma, rho_j);
        const float similarity = scale * cos;
        l[j] = dot == DEAD ? DEAD : terms.a * similarity + terms.b;
        if constexpr (kind == PolicyKind::penalty) extra[j] = terms.a;
        if constexpr (kind == PolicyKind::rectify) extra[j] = dot == DEAD ? 0.0f : terms.f;
    }
}

// The largest of n logits, NaN left aside (it shows in the sums).
float largest(In l, int n) {
    float top = DEAD;
#if !defined(_MSC_VER)
#pragma omp simd reduction(max : top)
#endif
    for (int j = 0; j < n; ++j) top = l[j] > top ? l[j] : top;
    return top;
}

template <bool soft>
void add_row_sums(In l, In f, int n, double* statistics, std::int64_t stride) {
    const double before = statistics[TOP * stride];
    const float found = largest(l, n);
    const double top = found > before ? found : before;
    const float reference = top == static_cast<double>(DEAD) ? 0.0f : static_cast<float>(top);
    float sum_exp = 0.0f, sum_logits = 0.0f, sum_soft = 0.0f, sum_soft_logits = 0.0f;
#if !defined(_MSC_VER)
#pragma omp simd reduction(+ : sum_exp, sum_logits, sum_soft, sum_soft_logits)
#endif
    for (int j = 0; j < n; ++j) {
        const float live = l[j] == DEAD ? 0.0f : l[j];
        sum_exp += exp_f(l[j] - reference);
        sum_logits += live;
        if constexpr (soft) {
            sum_soft += f[j];
            sum_soft_logits += f[j] * live;
        }
    }
    double* sums = statistics + SUM_EXP * stride;
    *sums = (top == before ? *sums : *sums * std::exp(before - top)) + static_cast<double>(sum_exp);
    statistics[TOP * stride] = top;
    statistics[SUM_LOGITS * stride] += static_cast<double>(sum_logits);
    if constexpr (soft) {
        statistics[SUM_SOFT * stride] += static_cast<double>(sum_soft);
        statistics[SUM_SOFT_LOGITS * stride] += static_cast<double>(sum_soft_logits);
    }
}

// One row and one chunk of columns: `columns` counts from the gallery's start; l, vu and extra point at the chunk.
template <PolicyKind kind, bool features>
void forward_chunk(const LossConstants& loss, std::int64_t row, Span columns, float* l, const float* vu, float* extra,
                   double* statistics, std::int64_t stride) {
    alignas(64) float h[CHUNK], chord[CHUNK], rho[CHUNK], own_extra[CHUNK];
    const int n = columns.size;
    ChunkInputs inputs{loss.inverse_y + columns.start, vu, nullptr, h, rho, 0.0f};
    constexpr float neutral = kind == PolicyKind::penalty ? 1.0f : 0.0f;
    if (extra == nullptr) extra = own_extra;
    const std::int64_t target = loss.targets[row] - columns.start;
    const bool has_positive = 0 <= target && target < n;
    const float positive = has_positive ? l[target] : 0.0f;
    if constexpr (kind != PolicyKind::none) {
        const float* p = loss.p + 3 * row;
        const float *qx = loss.q[0] + columns.start, *qy = loss.q[1] + columns.start, *qz = loss.q[2] + columns.start;
        if constexpr (!reads_dissimilarity(kind)) {
            distance_stage<true, false>(p, qx, qy, qz, n, h, nullptr);
        } else if (loss.chord) {
            distance_stage<reads_arc(kind), true>(p, qx, qy, qz, n, h, chord);
            correlation_stage(loss.variogram, chord, n, rho);
        } else {
            distance_stage<true, false>(p, qx, qy, qz, n, h, nullptr);
            correlation_stage(loss.variogram, h, n, rho);
        }
    }
    if constexpr (reads_dissimilarity(kind) && !features) {
        inputs.inverse_u = loss.inverse_u + columns.start;
        inputs.row_image = loss.row_image[row];
    }
    logits_stage<kind, features>(loss, inputs, n, l, extra);
    if (has_positive) {
        l[target] = positive == DEAD ? DEAD : loss.scale * (positive * inputs.inverse_y[target]);
        extra[target] = neutral;
    }
    if (statistics != nullptr) {
        add_row_sums<kind == PolicyKind::rectify>(l, extra, n, statistics, stride);
        if (has_positive && positive != DEAD) statistics[POSITIVE_LOGIT * stride] = static_cast<double>(l[target]);
    }
}

template <PolicyKind kind, bool features>
void forward_tile(const LossConstants& loss, Tile tile, Matrix<float> dot, Matrix<const float> vu, Matrix<float> extra,
                  Matrix<double> statistics) {
    const std::int64_t blocks = (tile.rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#if !defined(_MSC_VER)
#pragma omp parallel for schedule(dynamic, 1) num_threads(loss.threads) if (loss.threads > 1 && tile.rows * tile.columns > WORTH_THREADS)
#endif
    for (std::int64_t block = 0; block < blocks; ++block) {
        const Span rows = chunk_at(block * ROWS_AT_ONCE, tile.rows, ROWS_AT_ONCE);
        for (std::int64_t start = 0; start < tile.columns; start += CHUNK) {
            const Span local = chunk_at(start, tile.columns, CHUNK);
            const Span columns{tile.first_column + start, local.size};
            for (std::int64_t i = rows.start; i < rows.start + rows.size; ++i) {
                forward_chunk<kind, features>(
                    loss, tile.first_row + i, columns, dot.row(i) + start,
                    vu.data == nullptr ? nullptr : vu.row(i) + start,
                    extra.data == nullptr ? nullptr : extra.row(i) + start,
                    statistics.data == nullptr ? nullptr : statistics.data + tile.first_row + i, statistics.stride);
            }
        }
    }
}

template <PolicyKind kind>
void forward_policy(const LossConstants& loss, Tile tile, Matrix<float> dot, Matrix<const float> vu,
                    Matrix<float> extra, Matrix<double> statistics) {
    if constexpr (reads_dissimilarity(kind)) {
        if (loss.features) return forward_tile<kind, true>(loss, tile, dot, vu, extra, statistics);
    }
    forward_tile<kind, false>(loss, tile, dot, vu, extra, statistics);
}

void forward(const LossConstants& loss, Tile tile, Matrix<float> dot, Matrix<const float> vu, Matrix<float> extra,
             Matrix<double> statistics) {
    using K = PolicyKind;
    switch (loss.policy_kind) {
        case K::none: return forward_policy<K::none>(loss, tile, dot, vu, extra, statistics);
        case K::semivariogram: return forward_policy<K::semivariogram>(loss, tile, dot, vu, extra, statistics);
        case K::explained: return forward_policy<K::explained>(loss, tile, dot, vu, extra, statistics);
        case K::threshold: return forward_policy<K::threshold>(loss, tile, dot, vu, extra, statistics);
        case K::rectify: return forward_policy<K::rectify>(loss, tile, dot, vu, extra, statistics);
        case K::penalty: return forward_policy<K::penalty>(loss, tile, dot, vu, extra, statistics);
        case K::distance: return forward_policy<K::distance>(loss, tile, dot, vu, extra, statistics);
        case K::distance_linear: return forward_policy<K::distance_linear>(loss, tile, dot, vu, extra, statistics);
    }
}

// The sums of one block of columns over all rows of a tile: first the maxima, then the sums.
template <bool soft>
void add_column_sums(std::int64_t rows, Span columns, Matrix<const float> logits, Matrix<const float> f,
                     double* statistics, std::int64_t stride) {
    alignas(64) float top[COLUMNS_AT_ONCE], part[4][COLUMNS_AT_ONCE];
    alignas(64) double total[4][COLUMNS_AT_ONCE];
    const int n = columns.size;
    for (int j = 0; j < n; ++j) {
        const double before = statistics[TOP * stride + j];
        top[j] = static_cast<float>(before);
        for (int k = 0; k < 4; ++k) total[k][j] = 0.0;
    }
    for (std::int64_t i = 0; i < rows; ++i) {
        In l = logits.row(i) + columns.start;
        SEMIVARIO_SIMD
        for (int j = 0; j < n; ++j) top[j] = l[j] > top[j] ? l[j] : top[j];
    }
    for (std::int64_t first = 0; first < rows; first += ROWS_PER_FLUSH) {
        const Span group = chunk_at(first, rows, ROWS_PER_FLUSH);
        for (int k = 0; k < 4; ++k) {
            for (int j = 0; j < n; ++j) part[k][j] = 0.0f;
        }
        for (std::int64_t i = first; i < first + group.size; ++i) {
            In l = logits.row(i) + columns.start;
            In f_row = soft ? f.row(i) + columns.start : nullptr;
            SEMIVARIO_SIMD
            for (int j = 0; j < n; ++j) {
                const float live = l[j] == DEAD ? 0.0f : l[j];
                part[0][j] += exp_f(l[j] - (top[j] == DEAD ? 0.0f : top[j]));
                part[1][j] += live;
                if constexpr (soft) {
                    part[2][j] += f_row[j];
                    part[3][j] += f_row[j] * live;
                }
            }
        }
        for (int k = 0; k < 4; ++k) {
            for (int j = 0; j < n; ++j) total[k][j] += static_cast<double>(part[k][j]);
        }
    }
    for (int j = 0; j < n; ++j) {
        double* of_column = statistics + j;
        const double before = of_column[TOP * stride], now = static_cast<double>(top[j]);
        double* sum = of_column + SUM_EXP * stride;
        *sum = (before == now ? *sum : *sum * std::exp(before - now)) + total[0][j];
        of_column[TOP * stride] = now;
        of_column[SUM_LOGITS * stride] += total[1][j];
        of_column[SUM_SOFT * stride] += total[2][j];
        of_column[SUM_SOFT_LOGITS * stride] += total[3][j];
    }
}

void column_statistics(const LossConstants& loss, Tile tile, Matrix<const float> logits, Matrix<const float> soft,
                       Matrix<double> statistics) {
    const std::int64_t blocks = (tile.columns + COLUMNS_AT_ONCE - 1) / COLUMNS_AT_ONCE;
#if !defined(_MSC_VER)
#pragma omp parallel for schedule(dynamic, 1) num_threads(loss.threads) if (loss.threads > 1 && tile.rows * tile.columns > WORTH_THREADS)
#endif
    for (std::int64_t block = 0; block < blocks; ++block) {
        const Span columns = chunk_at(block * COLUMNS_AT_ONCE, tile.columns, COLUMNS_AT_ONCE);
        double* of_block = statistics.data + tile.first_column + columns.start;
        if (soft.data == nullptr) {
            add_column_sums<false>(tile.rows, columns, logits, soft, of_block, statistics.stride);
        } else {
            add_column_sums<true>(tile.rows, columns, logits, soft, of_block, statistics.stride);
        }
    }
    for (std::int64_t i = 0; i < tile.rows; ++i) {
        const std::int64_t target = loss.targets[tile.first_row + i] - tile.first_column;
        if (target < 0 || target >= tile.columns) continue;
        const float positive = logits.row(i)[target];
        if (positive != DEAD) statistics.row(POSITIVE_LOGIT)[tile.first_column + target] = static_cast<double>(positive);
    }
}

template <Extra kept, bool both_sides>
void gradient_chunk(SideValues row_side, const Side& column_side, In inverse_y, std::int64_t target, int n, Out l,
                    In extra) {
    const bool has_positive = 0 <= target && target < n;
    const float positive = has_positive ? l[target] : DEAD;
    In column_lse = column_side.log_sum_exp, column_weight = column_side.weight, column_hard = column_side.hard,
       column_smooth = column_side.smooth;
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        const float mass = kept == Extra::soft ? extra[j] : 0.0f;
        float g = side_gradient(row_side, l[j], mass);
        if constexpr (both_sides) {
            g += side_gradient({column_lse[j], column_weight[j], column_hard[j], column_smooth[j]}, l[j], mass);
        }
        const float factor = kept == Extra::factor ? extra[j] * inverse_y[j] : inverse_y[j];
        l[j] = l[j] == DEAD ? 0.0f : g * factor;
    }
    if (positive != DEAD) {  // a = 1, f = 0
        float g = side_gradient(row_side, positive, 1.0f);
        if constexpr (both_sides) g += side_gradient(side_at(column_side, target), positive, 1.0f);
        l[target] = g * inverse_y[target];
    }
}

template <Extra kept, bool both_sides>
void gradient_tile(const LossConstants& loss, Tile tile, Matrix<float> logits, Matrix<const float> extra,
                   const Side& row_side, const Side* column_side) {
#if !defined(_MSC_VER)
#pragma omp parallel for schedule(dynamic, ROWS_AT_ONCE) num_threads(loss.threads) if (loss.threads > 1 && tile.rows * tile.columns > WORTH_THREADS)
#endif
    for (std::int64_t i = 0; i < tile.rows; ++i) {
        const std::int64_t row = tile.first_row + i;
        for (std::int64_t start = 0; start < tile.columns; start += CHUNK) {
            const Span local = chunk_at(start, tile.columns, CHUNK);
            const std::int64_t column = tile.first_column + start;
            Side side{};
            if constexpr (both_sides) {
                side = {column_side->log_sum_exp + column, column_side->weight + column, column_side->hard + column,
                        column_side->smooth + column};
            }
            gradient_chunk<kept, both_sides>(side_at(row_side, row), side, loss.inverse_y + column,
                                             loss.targets[row] - column, local.size, logits.row(i) + start,
                                             kept == Extra::none ? nullptr : extra.row(i) + start);
        }
    }
}

template <Extra kept>
void gradient_extra(const LossConstants& loss, Tile tile, Matrix<float> logits, Matrix<const float> extra,
                    const Side& row_side, const Side* column_side) {
    if (column_side == nullptr) return gradient_tile<kept, false>(loss, tile, logits, extra, row_side, column_side);
    gradient_tile<kept, true>(loss, tile, logits, extra, row_side, column_side);
}

void gradient(const LossConstants& loss, Tile tile, Matrix<float> logits, Matrix<const float> extra, Side row_side,
              const Side* column_side) {
    switch (loss.policy_kind) {
        case PolicyKind::penalty:
            return gradient_extra<Extra::factor>(loss, tile, logits, extra, row_side, column_side);
        case PolicyKind::rectify:
            return gradient_extra<Extra::soft>(loss, tile, logits, extra, row_side, column_side);
        default: return gradient_extra<Extra::none>(loss, tile, logits, extra, row_side, column_side);
    }
}

template <typename T>
void haversine(const T* p, std::int64_t rows, const T* const q[3], std::int64_t columns, Matrix<T> out, int threads) {
#if !defined(_MSC_VER)
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * columns > WORTH_THREADS)
#endif
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t start = 0; start < columns; start += CHUNK) {
            const Span local = chunk_at(start, columns, CHUNK);
            distance_stage<true, false, T>(p + 3 * i, q[0] + start, q[1] + start, q[2] + start, local.size,
                                           out.row(i) + start, nullptr);
        }
    }
}

void distances(std::int64_t n, const float* p, const float* const q[3], float* h, float* chord) {
    for (std::int64_t k = 0; k < n; ++k) {
        distance_stage<true, true>(p + 3 * k, q[0] + k, q[1] + k, q[2] + k, 1, h + k, chord + k);
    }
}

template <PolicyKind kind>
void policy_stage(const Policy& loss_policy, int n, In h, In d, In gamma, In rho, Out a, Out b, Out f) {
    const Policy policy = loss_policy;
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        const PairTerms terms = pair_terms<kind>(policy, h[j], d[j], gamma[j], rho[j]);
        a[j] = terms.a;
        b[j] = terms.b;
        f[j] = terms.f;
    }
}

void terms(const LossConstants& loss, std::int64_t total, const float* h, const float* lag, const float* d, float* rho,
           float* gamma, float* a, float* b, float* f) {
    using K = PolicyKind;
    const int n = static_cast<int>(total);
    correlation_stage(loss.variogram, lag, n, rho);
    for (int j = 0; j < n; ++j) gamma[j] = semivariance(loss.variogram.nugget, loss.variogram.psill, rho[j]);
    switch (loss.policy_kind) {
        case K::none: return policy_stage<K::none>(loss.policy, n, h, d, gamma, rho, a, b, f);
        case K::semivariogram: return policy_stage<K::semivariogram>(loss.policy, n, h, d, gamma, rho, a, b, f);
        case K::explained: return policy_stage<K::explained>(loss.policy, n, h, d, gamma, rho, a, b, f);
        case K::threshold: return policy_stage<K::threshold>(loss.policy, n, h, d, gamma, rho, a, b, f);
        case K::rectify: return policy_stage<K::rectify>(loss.policy, n, h, d, gamma, rho, a, b, f);
        case K::penalty: return policy_stage<K::penalty>(loss.policy, n, h, d, gamma, rho, a, b, f);
        case K::distance: return policy_stage<K::distance>(loss.policy, n, h, d, gamma, rho, a, b, f);
        case K::distance_linear: return policy_stage<K::distance_linear>(loss.policy, n, h, d, gamma, rho, a, b, f);
    }
}

}  // namespace

BinnedTile SEMIVARIO_NAME(binned_tile_, SEMIVARIO_ISA);
extern const RankingKernels SEMIVARIO_NAME(ranking_kernels_, SEMIVARIO_ISA);

extern const Kernels SEMIVARIO_NAME(kernels_, SEMIVARIO_ISA);
const Kernels SEMIVARIO_NAME(kernels_, SEMIVARIO_ISA) = {
    SEMIVARIO_STRING(SEMIVARIO_ISA),
    forward,
    column_statistics,
    gradient,
    haversine<float>,
    haversine<double>,
    SEMIVARIO_NAME(binned_tile_, SEMIVARIO_ISA),
    &SEMIVARIO_NAME(ranking_kernels_, SEMIVARIO_ISA),
    distances,
    terms,
};

}  // namespace semivario
