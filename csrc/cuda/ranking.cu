// The best k scores of every row, streaming over tiles of scores.
//
// Scores travel as the keys of ranking.h, no two of which are equal: the result depends on no order of execution.
//
//   grid     one block per row
//   shared   the best k so far, descending, and behind them the scores of this tile that beat the k-th; both are
//            sorted together when the room is used up and at the end
#include "../ranking.h"
#include "launch.h"
#include "quad.h"
#include "softmax_sums.h"

namespace semivario {
namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int STEP = THREADS * QUAD;
constexpr int ROOM = MOST_RANKED + STEP;  // a power of two

// Sorts keys[0 … size), size a power of two, into descending order.
__device__ __forceinline__ void sort_descending(std::uint64_t* keys, int size) {
    for (int run = 2; run <= size; run *= 2) {
        for (int gap = run / 2; gap > 0; gap /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                const int low = 2 * pair - pair % gap, high = low + gap;
                const std::uint64_t a = keys[low], b = keys[high];
                const bool descends = (low & run) == 0;
                if ((a < b) == descends) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

// How many candidates the threads before this one have; `total` becomes the block's.
__device__ __forceinline__ int candidates_before(int own, int* of_warps, int& total) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int up_to_here = own;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int before = __shfl_up_sync(WHOLE_WARP, up_to_here, distance);
        if (lane >= distance) up_to_here += before;
    }
    if (lane == WARP - 1) of_warps[warp] = up_to_here;
    __syncthreads();
    int before = up_to_here - own;
    total = 0;
    for (int w = 0; w < WARPS; ++w) {
        if (w < warp) before += of_warps[w];
        total += of_warps[w];
    }
    return before;
}

__device__ __forceinline__ void merge(std::uint64_t* keys, int used) {
    int size = 2;
    while (size < used) size *= 2;
    for (int at = used + threadIdx.x; at < size; at += THREADS) keys[at] = 0;
    sort_descending(keys, size);
}

__global__ void __launch_bounds__(THREADS)
    rank_rows(Tile tile, Matrix<const float> scores, std::uint64_t* best, int k) {
    __shared__ std::uint64_t keys[ROOM];
    __shared__ int of_warps[WARPS];
    std::uint64_t* of_row = best + static_cast<std::int64_t>(blockIdx.x) * k;
    const float* row = scores.row(blockIdx.x);
    for (int at = threadIdx.x; at < k; at += THREADS) keys[at] = of_row[at];
    __syncthreads();
    std::uint64_t worst = keys[k - 1];
    int used = k;
    for (std::int64_t first = 0; first < tile.columns; first += STEP) {
        const std::int64_t start = first + threadIdx.x * QUAD;
        const int count = quad_size(start, tile.columns);
        const Quad quad = load_quad(row + start, count, 0.0f);
        std::uint64_t found[QUAD];
        int own = 0;
#pragma unroll
        for (int j = 0; j < QUAD; ++j) {
            const std::uint64_t key = j < count ? ranking_key(quad.at[j], tile.first_column + start + j) : 0;
            found[j] = key > worst ? key : 0;
            own += found[j] != 0 ? 1 : 0;
        }
        if (__syncthreads_or(own) == 0) continue;
        int total = 0;
        const int before = candidates_before(own, of_warps, total);
        if (used + total > ROOM) {
            merge(keys, used);
            worst = keys[k - 1];
            used = k;
        }
        // those that the merge has ruled out are written all the same, and sort behind
        int place = used + before;
#pragma unroll
        for (int j = 0; j < QUAD; ++j) {
            if (found[j] != 0) keys[place++] = found[j];
        }
        used += total;
    }
    if (used == k) return;
    merge(keys, used);
    for (int at = threadIdx.x; at < k; at += THREADS) of_row[at] = keys[at];
}

__global__ void __launch_bounds__(THREADS)
    read_keys(const std::uint64_t* best, std::int64_t count, float* values, std::int64_t* indices) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= count) return;
    values[at] = ranked_score(best[at]);
    indices[at] = ranked_index(best[at]);
}

}  // namespace

void rank_tile(Queue queue, Tile tile, Matrix<const float> scores, std::uint64_t* best, int k) {
    if (k < 1 || k > MOST_RANKED) {
        throw std::invalid_argument("k: wanted 1 … " + std::to_string(MOST_RANKED) + ", got " + std::to_string(k));
    }
    launch(queue, "rank_tile", rank_rows, tile.rows, THREADS, tile, scores, best, k);
}

void read_ranking(Queue queue, const std::uint64_t* best, std::int64_t count, float* values, std::int64_t* indices) {
    launch(queue, "read_ranking", read_keys, pieces(count, THREADS), THREADS, best, count, values, indices);
}

}  // namespace semivario
