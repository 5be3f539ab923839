// Binning a tile of pairs of places: count, Σh, Σd, Σd² per distance bin and pair of spatial blocks.
//
//   grid     one block per ROWS rows × THREADS columns
//   thread   one column and all the rows in turn: neighbours on the curve mostly fall into one bin, whose sums stay
//            in registers until the bin changes
//   shared   the rows; and, where the bins are few, the sums between the spatial blocks of the first row and column
//   reads    the products, 4 bytes a pair
//
// All that is added are whole numbers of small units, so that the order of the atomic additions, which is the GPU's
// own, changes no bit of the result.
#include "../geometry.h"
#include "launch.h"

namespace semivario {
namespace {

constexpr int THREADS = 256;
constexpr int ROWS = 64;
constexpr int MOST_SHARED_SLOTS = 512;
static_assert(ROWS <= MOST_ADDED, "a run would overflow");

struct RowPlaces {
    double x[ROWS], y[ROWS], z[ROWS];
    float inverse_norm[ROWS];
    std::int32_t block[ROWS];
};

// Sums of 64 bits, whose atomics are slow in shared memory, as 32 bits and what they carry.
struct SharedSums {
    std::uint32_t low[BIN_SUMS * MOST_SHARED_SLOTS], carried[BIN_SUMS * MOST_SHARED_SLOTS];
};

// The sums of successive pairs that fall into one bin between the same two spatial blocks, in units.
struct Run {
    std::int64_t blocks;  // number of the pair of spatial blocks, −1 where there is none
    std::int32_t bin;
    std::uint32_t values[BIN_SUMS], quarters;
};

__device__ __forceinline__ void add_global(std::int64_t* sum, std::int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

__device__ __forceinline__ void end_run(const DeviceBinning& out, const Run& run, std::int64_t shared_blocks,
                                        SharedSums& shared) {
    if (run.blocks < 0) return;
    const std::int64_t slots = out.table.bins + 2;
    if (run.blocks == shared_blocks) {
#pragma unroll
        for (int k = 0; k < BIN_SUMS; ++k) {
            const int at = BIN_SUMS * run.bin + k;
            const std::uint32_t before = atomicAdd(&shared.low[at], run.values[k]);
            if (before + run.values[k] < before) atomicAdd(&shared.carried[at], 1u);
        }
    } else {
#pragma unroll
        for (int k = 0; k < BIN_SUMS; ++k) {
            add_global(out.sums + (run.blocks * slots + run.bin) * BIN_SUMS + k, run.values[k]);
        }
    }
    if (out.quarter_sums != nullptr) add_global(out.quarter_sums + run.bin, run.quarters);
}

__device__ __forceinline__ void add_pair(const DeviceBinning& out, Run& run, float h, float d) {
    const std::int32_t d_units = static_cast<std::int32_t>(d * D_UNITS + 0.5f);
    run.values[0] += 1;
    run.values[1] += static_cast<std::uint32_t>(h * H_UNITS + 0.5f);
    run.values[2] += static_cast<std::uint32_t>(d_units);
    run.values[3] += static_cast<std::uint32_t>(d * d * D2_UNITS + 0.5f);
    const float kept = static_cast<float>(d_units) * (1 / D_UNITS);
    if (out.quarter_sums != nullptr) {
        run.quarters += static_cast<std::uint32_t>(sqrtf(sqrtf(kept)) * QUARTER_UNITS + 0.5f);
    }
    if (out.histogram != nullptr) {
        const std::int64_t cell = static_cast<std::int64_t>(kept * (0.5f * static_cast<float>(out.cells)));
        add_global(out.histogram + out.cells * run.bin + (cell < out.cells ? cell : out.cells - 1), 1);
    }
}

__global__ void __launch_bounds__(THREADS)
    bin_pairs(const __grid_constant__ DeviceBinning out, const __grid_constant__ BinnedSide rows,
              const __grid_constant__ BinnedSide columns, const float* dot, std::int64_t stride, bool diagonal) {
    __shared__ RowPlaces places;
    __shared__ SharedSums shared;
    const std::int64_t strips = (columns.size + THREADS - 1) / THREADS, slots = out.table.bins + 2;
    const std::int64_t first_column = blockIdx.x % strips * THREADS, first_row = blockIdx.x / strips * ROWS;
    if (diagonal && first_column + THREADS <= first_row + 1) return;
    const int row_count = static_cast<int>(rows.size - first_row < ROWS ? rows.size - first_row : ROWS);
    const int shared_size = slots <= MOST_SHARED_SLOTS ? static_cast<int>(BIN_SUMS * slots) : 0;
    for (int at = threadIdx.x; at < shared_size; at += THREADS) shared.low[at] = shared.carried[at] = 0;
    for (int i = threadIdx.x; i < row_count; i += THREADS) {
        places.x[i] = rows.axes[0][first_row + i];
        places.y[i] = rows.axes[1][first_row + i];
        places.z[i] = rows.axes[2][first_row + i];
        places.inverse_norm[i] = rows.inverse_norm[first_row + i];
        places.block[i] = rows.block[first_row + i];
    }
    __syncthreads();
    const std::int64_t first_blocks = places.block[0] * out.blocks + columns.block[first_column];
    const std::int64_t shared_blocks = shared_size > 0 ? first_blocks : -1;

    const std::int64_t column = first_column + threadIdx.x;
    if (column < columns.size) {
        const double x = columns.axes[0][column], y = columns.axes[1][column], z = columns.axes[2][column];
        const float inverse_norm = columns.inverse_norm[column];
        const std::int32_t block = columns.block[column];
        const std::int64_t end = diagonal && column - first_row < row_count ? column - first_row : row_count;
        Run run{-1, 0, {}, 0};
        std::int64_t duplicates = 0;
        for (int i = 0; i < end; ++i) {
            const double dx = places.x[i] - x, dy = places.y[i] - y, dz = places.z[i] - z;
            const double squared = dx * dx + dy * dy + dz * dz;
            duplicates += squared < DUPLICATE_SQUARED_CHORD ? 1 : 0;
            const float h = great_circle_km(static_cast<float>(squared), positive_part(static_cast<float>(4.0 - squared)));
            const std::int32_t bin = settled_bin(out.table, out.table.cells[cell_of(out.table, h)], squared);
            const std::int64_t blocks = places.block[i] * out.blocks + block;
            if (bin != run.bin || blocks != run.blocks) {
                end_run(out, run, shared_blocks, shared);
                run = {blocks, bin, {}, 0};
            }
            const float products = dot[(first_row + i) * stride + column];
            // the product of the norms first: the same number whichever of the two places is the row
            const float d = positive_part(1.0f - products * (places.inverse_norm[i] * inverse_norm));
            add_pair(out, run, h, d > 2.0f ? 2.0f : d);
        }
        end_run(out, run, shared_blocks, shared);
        if (duplicates > 0) add_global(out.duplicates, duplicates);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < shared_size; at += THREADS) {
        const std::int64_t sum = static_cast<std::int64_t>(shared.carried[at]) << 32 | shared.low[at];
        if (sum != 0) add_global(out.sums + first_blocks * slots * BIN_SUMS + at, sum);
    }
}

}  // namespace

void bin_tile(Queue queue, const DeviceBinning& out, const BinnedSide& rows, const BinnedSide& columns,
              const float* dot, std::int64_t stride, bool diagonal) {
    launch(queue, "bin_tile", bin_pairs, pieces(rows.size, ROWS) * pieces(columns.size, THREADS), THREADS, out, rows,
           columns, dot, stride, diagonal);
}

}  // namespace semivario
