// Ranking the scores of a tile: OpenMP over rows, SIMD over columns.
//
// A row's k best entries so far are a heap with the worst of them on top. A tile's scores are compared with that one,
// GROUP at a time, and only a group that holds a better one is looked at entry by entry: of M columns in random order
// about k·ln(M/k). Entries come in the order of their index, so that of equal scores the later one is never better.
//
// This file is compiled once per instruction set; as in tile_kernels.cpp, it calls no inline function of the
// standard library.
#include "ranking_kernels.h"

#include "../ranking.h"
#include "isa.h"

namespace semivario {
namespace {

constexpr int GROUP = 64;
constexpr std::int64_t WORTH_THREADS = 16384;  // scores, or entries; fewer cost less than waking the threads

// Puts a key in place of a heap's entry `hole`, below which all are heaps.
void put(std::uint64_t* heap, std::int64_t size, std::int64_t hole, std::uint64_t key) {
    for (std::int64_t child = 2 * hole + 1; child < size; child = 2 * hole + 1) {
        // without a branch: which of two children is the worse cannot be foretold
        if (child + 1 < size) child += heap[child + 1] < heap[child] ? 1 : 0;
        if (heap[child] > key) break;
        heap[hole] = heap[child];
        hole = child;
    }
    heap[hole] = key;
}

// Whether one of n scores is larger than a number, or NaN.
bool any_larger(const float* SEMIVARIO_RESTRICT scores, int n, float than) {
    int found = 0;
#if !defined(_MSC_VER)
#pragma omp simd reduction(| : found)
#endif
    for (int j = 0; j < n; ++j) found |= scores[j] <= than ? 0 : 1;
    return found != 0;
}

void rank_row(const float* scores, std::int64_t first_column, std::int64_t columns, std::uint64_t* best,
              std::int64_t k) {
    std::int64_t start = 0;
    if (first_column < k) {
        const std::int64_t left = k - first_column, taken = columns < left ? columns : left;
        for (; start < taken; ++start) best[first_column + start] = ranking_key(scores[start], first_column + start);
        if (taken < left) return;
        for (std::int64_t top = k / 2; top-- > 0;) put(best, k, top, best[top]);
    }
    float worst = ranked_score(best[0]);
    if (worst != worst) return;  // all are NaN, and nothing is better
    for (; start < columns; start += GROUP) {
        const int n = static_cast<int>(columns - start < GROUP ? columns - start : GROUP);
        const bool found = n == GROUP ? any_larger(scores + start, GROUP, worst) : any_larger(scores + start, n, worst);
        if (!found) continue;
        for (std::int64_t j = start; j < start + n; ++j) {
            if (scores[j] <= worst) continue;
            put(best, k, 0, ranking_key(scores[j], first_column + j));
            worst = ranked_score(best[0]);
            if (worst != worst) return;
        }
    }
}

void rank_tile(Tile tile, Matrix<const float> scores, std::uint64_t* best, std::int64_t k, int threads) {
#if !defined(_MSC_VER)
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && tile.rows * tile.columns > WORTH_THREADS)
#endif
    for (std::int64_t i = 0; i < tile.rows; ++i) {
        rank_row(scores.row(i), tile.first_column, tile.columns, best + (tile.first_row + i) * k, k);
    }
}

void read_ranking(std::uint64_t* best, std::int64_t rows, std::int64_t k, float* values, std::int64_t* indices,
                  int threads) {
#if !defined(_MSC_VER)
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * k > WORTH_THREADS)
#endif
    for (std::int64_t i = 0; i < rows; ++i) {
        std::uint64_t* heap = best + i * k;
        for (std::int64_t last = k - 1; last > 0; --last) {  // the worst of those left goes behind them
            const std::uint64_t worst = heap[0];
            put(heap, last, 0, heap[last]);
            heap[last] = worst;
        }
        for (std::int64_t j = 0; j < k; ++j) {
            const std::uint64_t key = heap[j];
            values[i * k + j] = ranked_score(key);
            indices[i * k + j] = ranked_index(key);
        }
    }
}

}  // namespace

extern const RankingKernels SEMIVARIO_NAME(ranking_kernels_, SEMIVARIO_ISA);
const RankingKernels SEMIVARIO_NAME(ranking_kernels_, SEMIVARIO_ISA) = {rank_tile, read_ranking};

}  // namespace semivario
