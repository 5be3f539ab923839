// Binning a tile of pairs: OpenMP over rows, SIMD over columns.
//
// A row meets the columns in chunks that stay in the L1 cache and lie in one spatial block each:
//   near     p_i, q_j → squared chords in float64; a chunk beyond the last edge is left
//   values   ⟨v, u⟩, 1/|v|, 1/|u| → h, d and d² and their sums over the chunk
//   bins     the chunk's shortest and longest distance say which edges it holds, few where the places are sorted:
//            the sums beyond each of them are taken, and the differences belong to the bins. With many edges
//            every pair goes to its bin by the table of binning.h.
// The values are whole numbers of small units, so that sums are exact and neither the order of the places nor the
// tiles nor the threads change them.
// Rows are dealt to the threads in fixed parts, so that two runs with as many threads give the same bits.
//
// This file is compiled once per instruction set; as in tile_kernels.cpp, it calls no inline function of the
// standard library.
#include "binned_kernels.h"

#include <cmath>

#include "../geometry.h"
#include "isa.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace semivario {
namespace {

constexpr int CHUNK = 256;
constexpr int ROWS_AT_ONCE = 8;  // share the chunk's part of the columns
constexpr int FEW_EDGES = 12;    // passes over a chunk that cost less than its pairs one by one
static_assert(CHUNK <= MOST_ADDED, "the sums of a chunk would overflow");

struct Chunk {
    alignas(64) double near[CHUNK];
    alignas(64) std::uint32_t h[CHUNK], d[CHUNK], d2[CHUNK];  // in units
    alignas(64) std::int32_t bin[CHUNK];
    alignas(64) std::uint32_t values[CHUNK][BIN_SUMS];
};

// Of a chunk, or of its part beyond an edge.
struct ChunkSums {
    std::uint32_t count, h, d, d2;
};

struct Place {
    double x, y, z;
    float inverse_norm;
};

// The chunk's squared chords, the shortest and the longest of them.
void near_stage(Place p, const BinnedSide& columns, std::int64_t from, int n, Chunk& chunk, double& nearest,
                double& farthest) {
    const double* SEMIVARIO_RESTRICT qx = columns.axes[0] + from;
    const double* SEMIVARIO_RESTRICT qy = columns.axes[1] + from;
    const double* SEMIVARIO_RESTRICT qz = columns.axes[2] + from;
    double low = 5.0, high = -1.0;
#if !defined(_MSC_VER)
#pragma omp simd reduction(min : low) reduction(max : high)
#endif
    for (int j = 0; j < n; ++j) {
        const double dx = p.x - qx[j], dy = p.y - qy[j], dz = p.z - qz[j];
        const double squared = dx * dx + dy * dy + dz * dz;
        chunk.near[j] = squared;
        low = squared < low ? squared : low;
        high = squared > high ? squared : high;
    }
    nearest = low;
    farthest = high;
}

// The chunk's values and their sums.
ChunkSums value_stage(Place p, const BinnedSide& columns, std::int64_t from, const float* SEMIVARIO_RESTRICT dot, int n,
                      Chunk& chunk) {
    const float* SEMIVARIO_RESTRICT inverse_u = columns.inverse_norm + from;
    std::uint32_t sum_h = 0, sum_d = 0, sum_d2 = 0;
#if !defined(_MSC_VER)
#pragma omp simd reduction(+ : sum_h, sum_d, sum_d2)
#endif
    for (int j = 0; j < n; ++j) {
        const double squared = chunk.near[j];
        const float h = great_circle_km(static_cast<float>(squared), positive_part(static_cast<float>(4.0 - squared)));
        // the product of the norms first: the same number whichever of the two places is the row
        const float dissimilarity = positive_part(1.0f - dot[j] * (p.inverse_norm * inverse_u[j]));
        const float d = dissimilarity > 2.0f ? 2.0f : dissimilarity;
        // through int32, for which every instruction set has a conversion
        const std::uint32_t h_units = static_cast<std::uint32_t>(static_cast<std::int32_t>(h * H_UNITS + 0.5f));
        const std::uint32_t d_units = static_cast<std::uint32_t>(static_cast<std::int32_t>(d * D_UNITS + 0.5f));
        const std::uint32_t d2_units = static_cast<std::uint32_t>(static_cast<std::int32_t>(d * d * D2_UNITS + 0.5f));
        chunk.h[j] = h_units;
        chunk.d[j] = d_units;
        chunk.d2[j] = d2_units;
        sum_h += h_units;
        sum_d += d_units;
        sum_d2 += d2_units;
    }
    return {static_cast<std::uint32_t>(n), sum_h, sum_d, sum_d2};
}

ChunkSums sums_beyond(const Chunk& chunk, int n, double edge) {
    std::uint32_t count = 0, sum_h = 0, sum_d = 0, sum_d2 = 0;
#if !defined(_MSC_VER)
#pragma omp simd reduction(+ : count, sum_h, sum_d, sum_d2)
#endif
    for (int j = 0; j < n; ++j) {
        const std::uint32_t beyond = chunk.near[j] >= edge ? ~0u : 0u;
        count += beyond & 1u;
        sum_h += beyond & chunk.h[j];
        sum_d += beyond & chunk.d[j];
        sum_d2 += beyond & chunk.d2[j];
    }
    return {count, sum_h, sum_d, sum_d2};
}

void add_sums(std::int64_t* of_bin, ChunkSums all, ChunkSums beyond) {
    of_bin[0] += static_cast<std::int64_t>(all.count - beyond.count);
    of_bin[1] += static_cast<std::int64_t>(all.h - beyond.h);
    of_bin[2] += static_cast<std::int64_t>(all.d - beyond.d);
    of_bin[3] += static_cast<std::int64_t>(all.d2 - beyond.d2);
}

// The bin of one pair.
std::int32_t bin_of(const BinTable& table, double near) {
    const float h = great_circle_km(static_cast<float>(near), positive_part(static_cast<float>(4.0 - near)));
    return settled_bin(table, table.cells[cell_of(table, h)], near);
}

#if defined(__AVX2__)
void add_values(std::int64_t* sums, const std::uint32_t* values) {
    __m256i* const own = reinterpret_cast<__m256i*>(sums);
    const __m256i wide = _mm256_cvtepu32_epi64(_mm_load_si128(reinterpret_cast<const __m128i*>(values)));
    _mm256_storeu_si256(own, _mm256_add_epi64(_mm256_loadu_si256(own), wide));
}
#else
void add_values(std::int64_t* sums, const std::uint32_t* values) {
    for (int k = 0; k < BIN_SUMS; ++k) sums[k] += values[k];
}
#endif

// Looks up the cells in chunk.bin, and lists the pairs near an edge; returns how many they are.
#if defined(__AVX512F__)
int look_up(const std::int32_t* cells, int n, Chunk& chunk, std::int32_t* near_edge) {
    int count = 0;
    const __m512i open = _mm512_set1_epi32(NEAR_EDGE);
    __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int j = 0; j < n; j += 16) {
        const __mmask16 here = n - j >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - j)) - 1);
        const __m512i cell = _mm512_load_si512(chunk.bin + j);
        const __m512i bin = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), here, cell, cells, 4);
        const __mmask16 is_open = _mm512_mask_cmpge_epi32_mask(here, bin, open);
        _mm512_mask_store_epi32(chunk.bin + j, here, bin);
        _mm512_mask_compressstoreu_epi32(near_edge + count, is_open, number);
        count += __builtin_popcount(is_open);
        number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
    }
    return count;
}
#else
int look_up(const std::int32_t* cells, int n, Chunk& chunk, std::int32_t* near_edge) {
    int count = 0;
    for (int j = 0; j < n; ++j) {  // without a branch that could be foretold wrongly
        const std::int32_t bin = cells[chunk.bin[j]];
        chunk.bin[j] = bin;
        near_edge[count] = j;
        count += bin >= NEAR_EDGE ? 1 : 0;
    }
    return count;
}
#endif

// The bin of every pair of the chunk.
void bin_stage(const BinTable& bin_table, int n, Chunk& chunk) {
    const BinTable table = bin_table;
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        chunk.bin[j] = cell_of(table, static_cast<float>(static_cast<std::int32_t>(chunk.h[j])) * (1 / H_UNITS));
    }
    std::int32_t near_edge[CHUNK];
    const int count = look_up(table.cells, n, chunk, near_edge);
    for (int k = 0; k < count; ++k) {
        const int j = near_edge[k];
        chunk.bin[j] = settled_bin(table, chunk.bin[j], chunk.near[j]);
    }
}

void sum_stage(int n, Chunk& chunk, std::int64_t* sums) {
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        chunk.values[j][0] = 1;
        chunk.values[j][1] = chunk.h[j];
        chunk.values[j][2] = chunk.d[j];
        chunk.values[j][3] = chunk.d2[j];
    }
    for (int j = 0; j < n; ++j) add_values(sums + BIN_SUMS * chunk.bin[j], chunk.values[j]);
}

float dissimilarity(const Chunk& chunk, int j) { return static_cast<float>(static_cast<std::int32_t>(chunk.d[j])) * (1 / D_UNITS); }

void robust_stage(const Chunk& chunk, int n, double* quarter_sums, std::int64_t* histogram, std::int64_t cells) {
    if (quarter_sums != nullptr) {
        for (int j = 0; j < n; ++j) quarter_sums[chunk.bin[j]] += static_cast<double>(sqrtf(sqrtf(dissimilarity(chunk, j))));
    }
    if (histogram != nullptr) {
        const float per_cell = 0.5f * static_cast<float>(cells);
        for (int j = 0; j < n; ++j) {
            const std::int64_t cell = static_cast<std::int64_t>(dissimilarity(chunk, j) * per_cell);
            ++histogram[cells * chunk.bin[j] + (cell < cells ? cell : cells - 1)];
        }
    }
}

void prefetch(const float* start, int n) {
#if defined(__GNUC__)
    for (int j = 0; j < n; j += 16) __builtin_prefetch(start + j);
#else
    (void)start, (void)n;
#endif
}

struct Segment {
    std::int64_t start;
    int size;
    std::int32_t block;
};

// The next chunk of columns from `start` that meet rows first … last − 1 and lie in one block; empty at the end.
Segment segment_at(const BinnedSide& columns, const RowRange* met_rows, std::int64_t start, std::int64_t first,
                   std::int64_t last) {
    std::int64_t end = start + CHUNK < columns.size ? start + CHUNK : columns.size;
    if (met_rows != nullptr) {
        std::int64_t tile = start / MET_COLUMNS;
        const std::int64_t tiles = (columns.size + MET_COLUMNS - 1) / MET_COLUMNS;
        while (tile < tiles && !meets(met_rows[tile], first, last)) ++tile;
        if (tile == tiles) return {columns.size, 0, 0};
        start = start < tile * MET_COLUMNS ? tile * MET_COLUMNS : start;
        end = start + CHUNK < columns.size ? start + CHUNK : columns.size;
        while (tile * MET_COLUMNS < end && meets(met_rows[tile], first, last)) ++tile;
        end = tile * MET_COLUMNS < end ? tile * MET_COLUMNS : end;
    }
    const std::int32_t block = columns.block[start];
    while (columns.block[end - 1] != block) --end;  // the blocks rise
    return {start, static_cast<int>(end - start), block};
}

}  // namespace

void SEMIVARIO_NAME(binned_tile_, SEMIVARIO_ISA)(const BinTable& table, const BinnedSide& rows,
                                                 const BinnedSide& columns, const RowRange* met_rows,
                                                 const float* dot, std::int64_t dot_stride, bool diagonal,
                                                 const BinnedSums& out) {
    const std::int64_t slots = table.bins + 2;
    const double beyond = table.edges[table.bins];  // the last edge
    const std::int64_t groups = (rows.size + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
#if !defined(_MSC_VER)
#pragma omp parallel for schedule(static) num_threads(out.threads) if (out.threads > 1)
#endif
    for (int thread = 0; thread < out.threads; ++thread) {
        std::int64_t* own_sums = out.sums + thread * out.blocks * out.blocks * slots * BIN_SUMS;
        double* own_quarters = out.quarter_sums == nullptr ? nullptr : out.quarter_sums + thread * slots;
        std::int64_t* own_histogram = out.histogram == nullptr ? nullptr : out.histogram + thread * slots * out.cells;
        std::int64_t duplicates = 0;
        Chunk chunk;
        const bool robust = own_quarters != nullptr || own_histogram != nullptr;
        // groups of rows in turn: on the diagonal the later ones hold fewer pairs
        for (std::int64_t group = thread; group < groups; group += out.threads) {
            const std::int64_t first = group * ROWS_AT_ONCE;
            const std::int64_t end = first + ROWS_AT_ONCE < rows.size ? first + ROWS_AT_ONCE : rows.size;
            for (std::int64_t start = diagonal ? first + 1 : 0; start < columns.size;) {
                const Segment segment = segment_at(columns, met_rows, start, first, end);
                start = segment.start + segment.size;
                for (std::int64_t i = first; i < end; ++i) {
                    std::int64_t from = segment.start;
                    if (diagonal && from <= i) from = i + 1;
                    const int n = static_cast<int>(segment.start + segment.size - from);
                    if (n <= 0) continue;
                    std::int64_t* of_blocks = own_sums + (rows.block[i] * out.blocks + segment.block) * slots * BIN_SUMS;
                    // the products come from another core or from memory, and every row starts a new page
                    prefetch(i + 1 < end ? dot + (i + 1) * dot_stride + segment.start
                                         : dot + first * dot_stride + start, segment.size);
                    const Place p{rows.axes[0][i], rows.axes[1][i], rows.axes[2][i], rows.inverse_norm[i]};
                    double nearest, farthest;
                    near_stage(p, columns, from, n, chunk, nearest, farthest);
                    if (nearest >= beyond) continue;
                    ChunkSums all = value_stage(p, columns, from, dot + i * dot_stride + from, n, chunk);
                    const std::int32_t low = bin_of(table, nearest), high = bin_of(table, farthest);
                    if (robust || high - low > FEW_EDGES) bin_stage(table, n, chunk);
                    if (high - low > FEW_EDGES) {
                        sum_stage(n, chunk, of_blocks);
                    } else {
                        for (std::int32_t bin = low; bin < high; ++bin) {
                            const ChunkSums beyond = sums_beyond(chunk, n, table.edges[bin]);
                            add_sums(of_blocks + BIN_SUMS * bin, all, beyond);
                            all = beyond;
                        }
                        add_sums(of_blocks + BIN_SUMS * high, all, {});
                    }
                    if (robust) robust_stage(chunk, n, own_quarters, own_histogram, out.cells);
                    if (nearest >= DUPLICATE_SQUARED_CHORD) continue;
                    int found = 0;
                    SEMIVARIO_SIMD
                    for (int j = 0; j < n; ++j) found += chunk.near[j] < DUPLICATE_SQUARED_CHORD ? 1 : 0;
                    duplicates += found;
                }
            }
        }
        out.duplicates[thread] += duplicates;
    }
}

}  // namespace semivario
