// The binned semivariance of a tile of pairs; tile_kernels.h chooses the instruction set.
#pragma once

#include <cstdint>

#include "../binning.h"

namespace semivario {

struct BinnedSums {
    std::int64_t* sums;      // (threads, blocks, blocks, K + 2, BIN_SUMS), in units
    double* quarter_sums;    // (threads, K + 2) of d^¼; null where not wanted
    std::int64_t* histogram; // (threads, K + 2, cells) of d in [0, 2]; null where not wanted
    std::int64_t* duplicates; // (threads,) pairs at distance 0
    std::int64_t cells;
    std::int64_t blocks;
    int threads;
};

// `dot` holds the products of the two sides' embeddings; with `diagonal` only columns j > i count. Pairs of columns
// with rows that they do not meet, `met_rows`, null where they meet all, lie beyond the last edge and are left out.
using BinnedTile = void(const BinTable&, const BinnedSide& rows, const BinnedSide& columns, const RowRange* met_rows,
                        const float* dot, std::int64_t dot_stride, bool diagonal, const BinnedSums&);

}  // namespace semivario
