// The binned semivariance of a tile of pairs; tile_kernels.h chooses the instruction set.
#pragma once

#include <cstdint>

#include "../binning.h"

namespace semivario {

// One side of a tile, sorted along a space-filling curve.
struct BinnedSide {
    std::int64_t size;
    const double* axes[3];        // unit vectors
    const float* inverse_norm;    // 1 / |v|
    const std::int32_t* block;    // rising: which spatial block the place belongs to
};

constexpr int BIN_SUMS = 4;  // count, Σh, Σd, Σd²

// Sums are kept in whole units, so many of them to 1 km, to d = 1 and to d² = 1: MOST_ADDED values of h ≤ 20,016 km
// and d ≤ 2 stay below 2³¹. h is kept to 2 m and d to 1.2e-7, both without bias.
constexpr int MOST_ADDED = 256;
constexpr float H_UNITS = 256.0f;
constexpr float D_UNITS = 4194304.0f - 1.0f;
constexpr float D2_UNITS = 2097152.0f - 1.0f;

struct BinnedSums {
    std::int64_t* sums;      // (threads, blocks, blocks, K + 2, BIN_SUMS), in units
    double* quarter_sums;    // (threads, K + 2) of d^¼; null where not wanted
    std::int64_t* histogram; // (threads, K + 2, cells) of d in [0, 2]; null where not wanted
    std::int64_t* duplicates; // (threads,) pairs at distance 0
    std::int64_t cells;
    std::int64_t blocks;
    int threads;
};

// `dot` holds the products of the two sides' embeddings; with `diagonal` only columns j > i count.
using BinnedTile = void(const BinTable&, const BinnedSide& rows, const BinnedSide& columns, const float* dot,
                        std::int64_t dot_stride, bool diagonal, const BinnedSums&);

}  // namespace semivario
