// Binning a tile of pairs: OpenMP over rows, SIMD over columns.
//
// A row meets the columns in chunks that stay in the L1 cache and lie in one spatial block each, in two stages:
//   values   p_i, q_j, ⟨v, u⟩, 1/|v|, 1/|u| → squared chord in float64, cell of the bin table, (1, h, d, d²)   SIMD
//   sums     cell → bin k; (1, h, d, d²) added to bin k's                                      pair by pair
// The values are whole numbers of small units, so that sums are exact and neither the order of the places nor the
// tiles nor the threads change them. With few bins they go to four small tables of 32-bit sums in turn, since
// adding to one place again and again, as happens on sorted places, waits for the memory each time; after four
// rows and one chunk the tables are added to the thread's sums.
// Rows are dealt to the threads in fixed parts, so that two runs with as many threads give the same bits.
//
// This file is compiled once per instruction set; as in tile_kernels.cpp, it calls no inline function of the
// standard library.
#include "binned_kernels.h"

#include <cmath>

#include "../geometry.h"
#include "isa.h"

namespace semivario {
namespace {

constexpr int CHUNK = 256;
constexpr int ROWS_AT_ONCE = 4;
constexpr int TABLES = 4;
static_assert(ROWS_AT_ONCE * CHUNK / TABLES <= MOST_ADDED, "a small table would overflow");
constexpr std::int64_t MOST_TABLE_SLOTS = 128;  // of a small table: 8 KB in all; with more bins they seldom repeat

struct Chunk {
    alignas(64) double near[CHUNK + TABLES];
    alignas(64) std::int32_t bin[CHUNK + TABLES];  // the cell at first
    alignas(64) std::int32_t values[CHUNK + TABLES][BIN_SUMS];  // in units
};

struct Place {
    double x, y, z;
    float inverse_norm;
};

void value_stage(const BinTable& bin_table, Place p, const BinnedSide& columns, std::int64_t from,
                 const float* SEMIVARIO_RESTRICT dot, int n, Chunk& chunk) {
    const BinTable table = bin_table;
    const double* SEMIVARIO_RESTRICT qx = columns.axes[0] + from;
    const double* SEMIVARIO_RESTRICT qy = columns.axes[1] + from;
    const double* SEMIVARIO_RESTRICT qz = columns.axes[2] + from;
    const float* SEMIVARIO_RESTRICT inverse_u = columns.inverse_norm + from;
    double* SEMIVARIO_RESTRICT near = chunk.near;
    std::int32_t* SEMIVARIO_RESTRICT cell = chunk.bin;
    std::int32_t (*SEMIVARIO_RESTRICT values)[BIN_SUMS] = chunk.values;
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        const double dx = p.x - qx[j], dy = p.y - qy[j], dz = p.z - qz[j];
        const double squared = dx * dx + dy * dy + dz * dz;
        near[j] = squared;
        const float h = great_circle_km(static_cast<float>(squared), positive_part(static_cast<float>(4.0 - squared)));
        cell[j] = cell_of(table, h);
        // the product of the norms first: the same number whichever of the two places is the row
        const float dissimilarity = positive_part(1.0f - dot[j] * (p.inverse_norm * inverse_u[j]));
        const float d = dissimilarity > 2.0f ? 2.0f : dissimilarity;
        values[j][0] = 1;
        values[j][1] = static_cast<std::int32_t>(h * H_UNITS + 0.5f);
        values[j][2] = static_cast<std::int32_t>(d * D_UNITS + 0.5f);
        values[j][3] = static_cast<std::int32_t>(d * d * D2_UNITS + 0.5f);
    }
    for (int j = n; j < n + TABLES; ++j) {  // the sums go on to a multiple of TABLES
        near[j] = 0.0;
        cell[j] = 0;
        for (int k = 0; k < BIN_SUMS; ++k) values[j][k] = 0;
    }
}

#if defined(__GNUC__)
using Four = std::int32_t __attribute__((vector_size(16)));
using FourLong = std::int64_t __attribute__((vector_size(32), aligned(8)));

void add_values(std::int32_t* sums, const std::int32_t* values) {
    *reinterpret_cast<Four*>(sums) += *reinterpret_cast<const Four*>(values);
}

void add_values(std::int64_t* sums, const std::int32_t* values) {
    *reinterpret_cast<FourLong*>(sums) += __builtin_convertvector(*reinterpret_cast<const Four*>(values), FourLong);
}
#else
template <typename Sum>
void add_values(Sum* sums, const std::int32_t* values) {
    for (int k = 0; k < BIN_SUMS; ++k) sums[k] += values[k];
}
#endif

// Adds to TABLES tables that lie `apart` sums apart, or to one where that is 0.
template <bool keeps_bins, typename Sum>
void sum_stage(const BinTable& bin_table, Chunk& chunk, int n, Sum* sums, std::int64_t apart) {
    const BinTable table = bin_table;
    for (int j = 0; j < n; j += TABLES) {
        std::int32_t bin[TABLES], any = 0;
        for (int k = 0; k < TABLES; ++k) any |= bin[k] = table.cells[chunk.bin[j + k]];
        if (any >= NEAR_EDGE) {
            for (int k = 0; k < TABLES; ++k) bin[k] = settled_bin(table, bin[k], chunk.near[j + k]);
        }
        for (int k = 0; k < TABLES; ++k) {
            if constexpr (keeps_bins) chunk.bin[j + k] = bin[k];
            add_values(sums + k * apart + BIN_SUMS * bin[k], chunk.values[j + k]);
        }
    }
}

// Moves the small tables to the sums and empties them.
void flush(std::int32_t* SEMIVARIO_RESTRICT tables, std::int64_t size, std::int64_t* SEMIVARIO_RESTRICT sums) {
    for (std::int64_t k = 0; k < size; ++k) {
        sums[k] += static_cast<std::int64_t>(tables[k]) + tables[size + k] + tables[2 * size + k] + tables[3 * size + k];
    }
    for (std::int64_t k = 0; k < TABLES * size; ++k) tables[k] = 0;
}

float dissimilarity(const Chunk& chunk, int j) { return static_cast<float>(chunk.values[j][2]) * (1 / D_UNITS); }

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

// The next chunk of columns from `start` that lies in one block.
Segment segment_at(const BinnedSide& columns, std::int64_t start) {
    const std::int64_t left = columns.size - start;
    const int most = static_cast<int>(left < CHUNK ? left : CHUNK);
    const std::int32_t block = columns.block[start];
    int size = most;
    while (columns.block[start + size - 1] != block) --size;  // the blocks rise
    return {start, size, block};
}

}  // namespace

void SEMIVARIO_NAME(binned_tile_, SEMIVARIO_ISA)(const BinTable& table, const BinnedSide& rows,
                                                 const BinnedSide& columns, const float* dot,
                                                 std::int64_t dot_stride, bool diagonal, const BinnedSums& out) {
    const std::int64_t slots = table.bins + 2;
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
        alignas(64) std::int32_t tables[TABLES * MOST_TABLE_SLOTS * BIN_SUMS] = {};
        const bool robust = own_quarters != nullptr || own_histogram != nullptr;
        const bool small = slots <= MOST_TABLE_SLOTS;
        // groups of rows in turn: on the diagonal the later ones hold fewer pairs
        for (std::int64_t group = thread; group < groups; group += out.threads) {
            const std::int64_t first = group * ROWS_AT_ONCE;
            const std::int64_t end = first + ROWS_AT_ONCE < rows.size ? first + ROWS_AT_ONCE : rows.size;
            for (std::int64_t start = diagonal ? first + 1 : 0; start < columns.size;) {
                const Segment segment = segment_at(columns, start);
                start += segment.size;
                std::int64_t* block_sums = nullptr;
                for (std::int64_t i = first; i < end; ++i) {
                    std::int64_t from = segment.start;
                    if (diagonal && from <= i) from = i + 1;
                    const int n = static_cast<int>(segment.start + segment.size - from);
                    if (n <= 0) continue;
                    std::int64_t* of_blocks = own_sums + (rows.block[i] * out.blocks + segment.block) * slots * BIN_SUMS;
                    if (small && of_blocks != block_sums) {
                        if (block_sums != nullptr) flush(tables, slots * BIN_SUMS, block_sums);
                        block_sums = of_blocks;
                    }
                    // the products come from another core or from memory, and every row starts a new page
                    prefetch(i + 1 < end ? dot + (i + 1) * dot_stride + segment.start
                                         : dot + first * dot_stride + start, segment.size);
                    const Place p{rows.axes[0][i], rows.axes[1][i], rows.axes[2][i], rows.inverse_norm[i]};
                    value_stage(table, p, columns, from, dot + i * dot_stride + from, n, chunk);
                    const std::int64_t apart = slots * BIN_SUMS;
                    if (!robust) {
                        small ? sum_stage<false>(table, chunk, n, tables, apart)
                              : sum_stage<false>(table, chunk, n, of_blocks, 0);
                    } else {
                        small ? sum_stage<true>(table, chunk, n, tables, apart)
                              : sum_stage<true>(table, chunk, n, of_blocks, 0);
                        robust_stage(chunk, n, own_quarters, own_histogram, out.cells);
                    }
                    int found = 0;
                    SEMIVARIO_SIMD
                    for (int j = 0; j < n; ++j) found += chunk.near[j] < DUPLICATE_SQUARED_CHORD ? 1 : 0;
                    duplicates += found;
                }
                if (block_sums != nullptr) flush(tables, slots * BIN_SUMS, block_sums);
            }
        }
        out.duplicates[thread] += duplicates;
    }
}

}  // namespace semivario
