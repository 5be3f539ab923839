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

struct BinnedSums {
    double* sums;            // (threads, blocks, blocks, K + 2, BIN_SUMS)
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
