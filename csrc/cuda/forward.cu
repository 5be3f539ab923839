// Logits of a tile from the matrix products, and the rows' sums.
//
//   grid     one block per ROWS rows × COLUMNS columns
//   thread   four neighbouring columns, whose part of the gallery stays in registers for all rows
//   reads    ⟨x̂, y⟩ and ⟨v̂, u⟩, 6 or 8 bytes a pair; the gallery's 20 bytes a column once per ROWS rows
//   writes   l in place, 4 bytes a pair (a or f, 4 more, for penalty and rectify)
//   sums     thread → shared memory → one warp per row → statistics; where a row has several blocks, through
//            scratch and a second launch, always in the same order
#include "../geometry.h"
#include "launch.h"
#include "quad.h"
#include "softmax_sums.h"

namespace semivario {
namespace {

constexpr int THREADS = 256;
constexpr int COLUMNS = THREADS * QUAD;
constexpr int ROWS = THREADS / WARP;  // so that every warp sums one of them

// A thread's columns of the gallery.
struct GalleryQuad {
    Quad inverse_y, inverse_u, x, y, z;
};

template <PolicyKind kind, bool features>
constexpr bool reads_embeddings = reads_dissimilarity(kind) && !features;

template <PolicyKind kind, bool features>
__device__ __forceinline__ GalleryQuad load_gallery(const DeviceLoss& loss, std::int64_t column, int count) {
    GalleryQuad gallery{};
    gallery.inverse_y = load_quad(loss.inverse_y + column, count, 0.0f);
    if constexpr (kind != PolicyKind::none) {
        gallery.x = load_quad(loss.q[0] + column, count, 0.0f);
        gallery.y = load_quad(loss.q[1] + column, count, 0.0f);
        gallery.z = load_quad(loss.q[2] + column, count, 0.0f);
    }
    if constexpr (reads_embeddings<kind, features>) {
        gallery.inverse_u = load_quad(loss.inverse_u + column, count, 0.0f);
    }
    return gallery;
}

// h of the four pairs where the policy reads it, and ρ.
template <PolicyKind kind>
__device__ __forceinline__ void distance_and_correlation(const DeviceLoss& loss, const float* p,
                                                         const GalleryQuad& gallery, float (&h)[QUAD],
                                                         float (&rho)[QUAD]) {
    const float px = p[0], py = p[1], pz = p[2];
    float near[QUAD], lag[QUAD];
#pragma unroll
    for (int k = 0; k < QUAD; ++k) {
        near[k] = squared_norm(px - gallery.x.at[k], py - gallery.y.at[k], pz - gallery.z.at[k]);
    }
    if (reads_arc(kind) || !loss.chord) {
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            const float far = squared_norm(px + gallery.x.at[k], py + gallery.y.at[k], pz + gallery.z.at[k]);
            h[k] = great_circle_km(near[k], far);
        }
    }
    if constexpr (reads_dissimilarity(kind)) {
#pragma unroll
        for (int k = 0; k < QUAD; ++k) lag[k] = loss.chord ? chord_km(near[k]) : h[k];
        correlation(loss.variogram, lag, rho);
    }
}

// The four pairs' a, b and f; `positive` is which of them is the positive, −1 for none.
template <PolicyKind kind, bool features>
__device__ __forceinline__ void terms_of_row(const DeviceLoss& loss, std::int64_t row, const GalleryQuad& gallery,
                                             const Quad& cos, const Quad& vu, int positive,
                                             PairTerms (&terms)[QUAD]) {
    constexpr PairTerms neutral{1.0f, 0.0f, 0.0f};
    if constexpr (kind == PolicyKind::none) {
#pragma unroll
        for (int k = 0; k < QUAD; ++k) terms[k] = neutral;
    } else {
        float h[QUAD] = {}, rho[QUAD] = {};
        distance_and_correlation<kind>(loss, loss.p + 3 * row, gallery, h, rho);
        bool row_has_image = true;
        if constexpr (reads_embeddings<kind, features>) row_has_image = loss.row_image[row] != 0.0f;
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            float d = 0.0f, gamma = 0.0f;
            if constexpr (reads_dissimilarity(kind)) {
                gamma = semivariance(loss.variogram.nugget, loss.variogram.psill, rho[k]);
                if constexpr (features) {
                    d = 1.0f - cos.at[k];
                } else {
                    d = positive_part(1.0f - vu.at[k] * gallery.inverse_u.at[k]);
                    d = d > 2.0f ? 2.0f : d;
                    d = row_has_image && gallery.inverse_u.at[k] != 0.0f ? d : blank_dissimilarity<kind>();
                }
            }
            terms[k] = k == positive ? neutral : pair_terms<kind>(loss.policy, h[k], d, gamma, rho[k]);
        }
    }
}

template <PolicyKind kind, bool features>
__global__ void __launch_bounds__(THREADS)
    forward_tile(const __grid_constant__ DeviceLoss loss, Tile tile, Matrix<float> dot, ElementMatrix vu,
                 Matrix<float> extra, Matrix<double> statistics, float* scratch) {
    constexpr bool soft = kind == PolicyKind::rectify;
    __shared__ float parts[soft ? SOFTMAX_SUMS : SOFTMAX_SUMS - 2][ROWS][THREADS];
    constexpr std::int64_t value_stride = ROWS * THREADS;
    const std::int64_t segments = (tile.columns + COLUMNS - 1) / COLUMNS;
    const std::int64_t segment = blockIdx.x % segments, first = blockIdx.x / segments * ROWS;
    const int rows = static_cast<int>(tile.rows - first < ROWS ? tile.rows - first : ROWS);
    const std::int64_t start = segment * COLUMNS + threadIdx.x * QUAD;
    const int count = quad_size(start, tile.columns);
    const GalleryQuad gallery = load_gallery<kind, features>(loss, tile.first_column + start, count);
    const float scale = *loss.scale;

    for (int i = 0; i < rows; ++i) {
        const std::int64_t row = tile.first_row + first + i;
        float* l_address = dot.row(first + i) + start;
        const Quad products = load_quad(l_address, count, DEAD);
        Quad cos, likeness{};
        if constexpr (reads_embeddings<kind, features>) {
            likeness = load_quad(vu, first + i, start, count, 0.0f);
        }
#pragma unroll
        for (int k = 0; k < QUAD; ++k) cos.at[k] = products.at[k] * gallery.inverse_y.at[k];
        const int positive = place_in_quad(loss.targets[row], tile.first_column + start);
        PairTerms terms[QUAD];
        terms_of_row<kind, features>(loss, row, gallery, cos, likeness, positive, terms);

        float l[QUAD], kept[QUAD], top = DEAD;
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            const bool dead = products.at[k] == DEAD;
            const float similarity = scale * cos.at[k];
            l[k] = dead ? DEAD : terms[k].a * similarity + terms[k].b;
            kept[k] = kind == PolicyKind::penalty ? terms[k].a : (dead ? 0.0f : terms[k].f);
            top = l[k] > top ? l[k] : top;
        }
        store_quad(l_address, count, l);
        if constexpr (kind == PolicyKind::penalty || soft) {
            if (extra.data != nullptr) store_quad(extra.row(first + i) + start, count, kept);
        }
        if (statistics.data == nullptr) continue;
        SoftmaxSums sums{top, 0.0f, 0.0f, 0.0f, 0.0f};
        const float reference = reference_of(top);
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            add_logit<soft>(sums, reference, l[k], kept[k]);
            if (k == positive && k < count && products.at[k] != DEAD) {
                statistics.row(POSITIVE_LOGIT)[row] = static_cast<double>(l[k]);
            }
        }
        write_part<soft>(&parts[0][i][threadIdx.x], value_stride, sums);
    }
    if (statistics.data == nullptr) return;
    __syncthreads();

    const int warp = threadIdx.x / WARP;
    if (warp >= rows) return;
    const SoftmaxSums total = warp_total<soft>(parts[0][warp], THREADS, value_stride);
    if (threadIdx.x % WARP != 0) return;
    if (segments == 1) {
        add_to_statistics<soft>(statistics, tile.first_row + first + warp, total);
    } else {
        write_part<soft>(scratch + (first + warp) * segments + segment, tile.rows * segments, total);
    }
}

// A warp per row adds what the row's blocks left in scratch, (SOFTMAX_SUMS, rows, segments).
template <bool soft>
__global__ void __launch_bounds__(THREADS)
    add_row_segments(Tile tile, std::int64_t segments, const float* scratch, Matrix<double> statistics) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * ROWS + threadIdx.x / WARP;
    if (i >= tile.rows) return;
    const SoftmaxSums total = warp_total<soft>(scratch + i * segments, segments, tile.rows * segments);
    if (threadIdx.x % WARP == 0) add_to_statistics<soft>(statistics, tile.first_row + i, total);
}

template <PolicyKind kind, bool features>
void launch_forward(Queue queue, const DeviceLoss& loss, Tile tile, Matrix<float> dot, ElementMatrix vu,
                    Matrix<float> extra, Matrix<double> statistics, float* scratch) {
    const std::int64_t segments = pieces(tile.columns, COLUMNS), blocks = pieces(tile.rows, ROWS);
    launch(queue, "forward", forward_tile<kind, features>, blocks * segments, THREADS, loss, tile, dot, vu, extra,
           statistics, scratch);
    if (statistics.data == nullptr || segments == 1) return;
    launch(queue, "forward", add_row_segments<kind == PolicyKind::rectify>, blocks, THREADS, tile, segments, scratch,
           statistics);
}

template <PolicyKind kind>
void launch_policy(Queue queue, const DeviceLoss& loss, Tile tile, Matrix<float> dot, ElementMatrix vu,
                   Matrix<float> extra, Matrix<double> statistics, float* scratch) {
    if constexpr (reads_dissimilarity(kind)) {
        if (loss.features) {
            return launch_forward<kind, true>(queue, loss, tile, dot, vu, extra, statistics, scratch);
        }
    }
    launch_forward<kind, false>(queue, loss, tile, dot, vu, extra, statistics, scratch);
}

}  // namespace

std::int64_t forward_scratch(std::int64_t rows, std::int64_t columns) {
    const std::int64_t segments = pieces(columns, COLUMNS);
    return segments == 1 ? 0 : SOFTMAX_SUMS * rows * segments;
}

void forward(Queue queue, const DeviceLoss& loss, Tile tile, Matrix<float> dot, ElementMatrix vu,
             Matrix<float> extra, Matrix<double> statistics, float* scratch) {
    using K = PolicyKind;
    const auto run = [&](auto launch_kind) { launch_kind(queue, loss, tile, dot, vu, extra, statistics, scratch); };
    switch (loss.policy_kind) {
        case K::none: return run(launch_policy<K::none>);
        case K::semivariogram: return run(launch_policy<K::semivariogram>);
        case K::explained: return run(launch_policy<K::explained>);
        case K::threshold: return run(launch_policy<K::threshold>);
        case K::rectify: return run(launch_policy<K::rectify>);
        case K::penalty: return run(launch_policy<K::penalty>);
        case K::distance: return run(launch_policy<K::distance>);
        case K::distance_linear: return run(launch_policy<K::distance_linear>);
    }
}

}  // namespace semivario
