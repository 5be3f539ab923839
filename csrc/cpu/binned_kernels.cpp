// Binning a tile of pairs: OpenMP over rows, SIMD over columns.
//
// A row meets the columns in chunks that stay in the L1 cache and lie in one spatial block each:
//   distance   p_i, q_j             → squared chord in float64, h in float32
//   bin        squared chord, h     → k             table over h, then exact comparisons with the edges
//   value      ⟨v, u⟩, 1/|v|, 1/|u| → (1, h, d, d²)
//   sums       k, (1, h, d, d²)     → a table of float64 sums of the thread's own, 32 bytes a bin
// Where sixteen neighbours share a bin, as they do on a sorted tile that is far away, their sum is made first.
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

constexpr int CHUNK = 512;
constexpr int TOGETHER = 16;
constexpr int ROWS_AT_ONCE = 8;  // share the chunk's part of the columns
constexpr double DUPLICATE_SQUARED_CHORD = 1e-28;  // 64 nm: above the rounding of the unit vectors

struct Chunk {
    alignas(64) double near[CHUNK];
    alignas(64) float h[CHUNK];
    alignas(64) float d[CHUNK];
    alignas(64) std::int32_t bin[CHUNK];
    alignas(64) float values[CHUNK][BIN_SUMS];
};

void distance_stage(double px, double py, double pz, const double* SEMIVARIO_RESTRICT qx,
                    const double* SEMIVARIO_RESTRICT qy, const double* SEMIVARIO_RESTRICT qz, int n,
                    double* SEMIVARIO_RESTRICT near, float* SEMIVARIO_RESTRICT h) {
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        const double dx = px - qx[j], dy = py - qy[j], dz = pz - qz[j];
        const double squared = dx * dx + dy * dy + dz * dz;
        near[j] = squared;
        const float far = static_cast<float>(4.0 - squared);
        h[j] = great_circle_km(static_cast<float>(squared), far < 0.0f ? 0.0f : far);
    }
}

void bin_stage(const BinTable& table, const double* SEMIVARIO_RESTRICT near, const float* SEMIVARIO_RESTRICT h, int n,
               std::int32_t* SEMIVARIO_RESTRICT bin) {
    const BinTable t = table;
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) bin[j] = t.cells[cell_of(t, h[j])];
    for (std::int32_t step = 0; step < t.steps; ++step) {
        SEMIVARIO_SIMD
        for (int j = 0; j < n; ++j) bin[j] += near[j] >= t.edges[bin[j]] ? 1 : 0;
    }
}

void value_stage(const float* SEMIVARIO_RESTRICT dot, float inverse_v, const float* SEMIVARIO_RESTRICT inverse_u,
                 const float* SEMIVARIO_RESTRICT h, int n, float* SEMIVARIO_RESTRICT d,
                 float (*SEMIVARIO_RESTRICT values)[BIN_SUMS]) {
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        // the product of the norms first: the same number whichever of the two places is the row
        const float dissimilarity = positive_part(1.0f - dot[j] * (inverse_v * inverse_u[j]));
        d[j] = dissimilarity > 2.0f ? 2.0f : dissimilarity;
    }
    SEMIVARIO_SIMD
    for (int j = 0; j < n; ++j) {
        values[j][0] = 1.0f;
        values[j][1] = h[j];
        values[j][2] = d[j];
        values[j][3] = d[j] * d[j];
    }
}

bool in_one_bin(const std::int32_t* bin) {
    std::int32_t differs = 0;
    for (int j = 1; j < TOGETHER; ++j) differs |= bin[j] ^ bin[0];
    return differs == 0;
}

void sum_stage(const Chunk& chunk, int n, double* SEMIVARIO_RESTRICT sums) {
    int j = 0;
    for (; j + TOGETHER <= n; j += TOGETHER) {
        if (in_one_bin(chunk.bin + j)) {
            float together[BIN_SUMS] = {};
            for (int i = 0; i < TOGETHER; ++i) {
                for (int k = 0; k < BIN_SUMS; ++k) together[k] += chunk.values[j + i][k];
            }
            double* SEMIVARIO_RESTRICT of_bin = sums + BIN_SUMS * static_cast<std::int64_t>(chunk.bin[j]);
            for (int k = 0; k < BIN_SUMS; ++k) of_bin[k] += static_cast<double>(together[k]);
            continue;
        }
        for (int i = j; i < j + TOGETHER; ++i) {
            double* SEMIVARIO_RESTRICT of_bin = sums + BIN_SUMS * static_cast<std::int64_t>(chunk.bin[i]);
            for (int k = 0; k < BIN_SUMS; ++k) of_bin[k] += static_cast<double>(chunk.values[i][k]);
        }
    }
    for (; j < n; ++j) {
        double* SEMIVARIO_RESTRICT of_bin = sums + BIN_SUMS * static_cast<std::int64_t>(chunk.bin[j]);
        for (int k = 0; k < BIN_SUMS; ++k) of_bin[k] += static_cast<double>(chunk.values[j][k]);
    }
}

void robust_stage(const Chunk& chunk, int n, double* quarter_sums, std::int64_t* histogram, std::int64_t cells) {
    if (quarter_sums != nullptr) {
        for (int j = 0; j < n; ++j) quarter_sums[chunk.bin[j]] += static_cast<double>(sqrtf(sqrtf(chunk.d[j])));
    }
    if (histogram != nullptr) {
        const float per_cell = 0.5f * static_cast<float>(cells);
        for (int j = 0; j < n; ++j) {
            const std::int64_t cell = static_cast<std::int64_t>(chunk.d[j] * per_cell);
            ++histogram[cells * chunk.bin[j] + (cell < cells ? cell : cells - 1)];
        }
    }
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
    if (columns.block[start + most - 1] != block) {  // the blocks rise
        size = 1;
        while (columns.block[start + size] == block) ++size;
    }
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
        double* own_sums = out.sums + thread * out.blocks * out.blocks * slots * BIN_SUMS;
        double* own_quarters = out.quarter_sums == nullptr ? nullptr : out.quarter_sums + thread * slots;
        std::int64_t* own_histogram = out.histogram == nullptr ? nullptr : out.histogram + thread * slots * out.cells;
        std::int64_t duplicates = 0;
        Chunk chunk;
        // groups of rows in turn: on the diagonal the later ones hold fewer pairs
        for (std::int64_t group = thread; group < groups; group += out.threads) {
            const std::int64_t first = group * ROWS_AT_ONCE;
            const std::int64_t end = first + ROWS_AT_ONCE < rows.size ? first + ROWS_AT_ONCE : rows.size;
            for (std::int64_t start = diagonal ? first + 1 : 0; start < columns.size;) {
                const Segment segment = segment_at(columns, start);
                start += segment.size;
                for (std::int64_t i = first; i < end; ++i) {
                    std::int64_t from = segment.start;
                    if (diagonal && from <= i) from = i + 1;
                    const int n = static_cast<int>(segment.start + segment.size - from);
                    if (n <= 0) continue;
                    distance_stage(rows.axes[0][i], rows.axes[1][i], rows.axes[2][i], columns.axes[0] + from,
                                   columns.axes[1] + from, columns.axes[2] + from, n, chunk.near, chunk.h);
                    bin_stage(table, chunk.near, chunk.h, n, chunk.bin);
                    value_stage(dot + i * dot_stride + from, rows.inverse_norm[i], columns.inverse_norm + from, chunk.h,
                                n, chunk.d, chunk.values);
                    sum_stage(chunk, n,
                              own_sums + (rows.block[i] * out.blocks + segment.block) * slots * BIN_SUMS);
                    if (own_quarters != nullptr || own_histogram != nullptr) {
                        robust_stage(chunk, n, own_quarters, own_histogram, out.cells);
                    }
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
