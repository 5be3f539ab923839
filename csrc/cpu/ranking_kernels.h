// The best k scores of every row, streaming over tiles of scores; tile_kernels.h chooses the instruction set.
#pragma once

#include <cstdint>

#include "../tile.h"

namespace semivario {

struct RankingKernels {
    // Adds a tile of scores to `best`, k keys of ranking.h a row. The tiles of a row come in the order of their
    // columns, beginning at 0; once there are k entries the row is a heap.
    void (*rank_tile)(Tile tile, Matrix<const float> scores, std::uint64_t* best, std::int64_t k, int threads);

    // Writes the entries of `best`, (rows, k) each, the best first; `indices` may be the memory of `best`.
    void (*read_ranking)(std::uint64_t* best, std::int64_t rows, std::int64_t k, float* values, std::int64_t* indices,
                         int threads);
};

}  // namespace semivario
