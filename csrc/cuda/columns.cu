// The columns' sums of a tile of logits.
//
//   grid     one block per COLUMNS columns × ROWS rows
//   thread   four neighbouring columns of every WARPS-th row, all held in registers; the largest first, then the sums
//   sums     warps → shared memory → one thread per column → statistics; where a column has several blocks, through
//            scratch and a second launch, always in the same order
#include "launch.h"
#include "quad.h"
#include "softmax_sums.h"

namespace semivario {
namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int COLUMNS = WARP * QUAD;
constexpr int ROWS_OF_THREAD = 8;
constexpr int ROWS = WARPS * ROWS_OF_THREAD;
constexpr int PARTS = SOFTMAX_SUMS + 1;  // and the positive's logit

// One thread adds parts of a column, in their order.
template <bool soft>
__device__ __forceinline__ SoftmaxSums column_total(const float* parts, std::int64_t count, std::int64_t step,
                                                    std::int64_t value_stride, float& positive) {
    SoftmaxSums total{DEAD, 0.0f, 0.0f, 0.0f, 0.0f};
    for (std::int64_t k = 0; k < count; ++k) total.top = parts[k * step] > total.top ? parts[k * step] : total.top;
    const float reference = reference_of(total.top);
    positive = 0.0f;
    for (std::int64_t k = 0; k < count; ++k) {
        add_part<soft>(total, reference, parts + k * step, value_stride);
        positive += parts[SOFTMAX_SUMS * value_stride + k * step];
    }
    return total;
}

template <bool soft>
__global__ void __launch_bounds__(THREADS)
    sum_columns(const std::int64_t* targets, Tile tile, Matrix<const float> logits, Matrix<const float> soft_targets,
                Matrix<double> statistics, float* scratch) {
    __shared__ float parts[PARTS][WARPS][COLUMNS];
    const std::int64_t strips = (tile.columns + COLUMNS - 1) / COLUMNS;
    const std::int64_t segments = (tile.rows + ROWS - 1) / ROWS;
    const std::int64_t segment = blockIdx.x / strips, first_column = blockIdx.x % strips * COLUMNS;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const std::int64_t start = first_column + lane * QUAD, first_row = segment * ROWS + warp;
    const int count = quad_size(start, tile.columns);

    Quad l[ROWS_OF_THREAD];
    float top[QUAD] = {DEAD, DEAD, DEAD, DEAD}, positive[QUAD] = {};
#pragma unroll
    for (int r = 0; r < ROWS_OF_THREAD; ++r) {
        const std::int64_t i = first_row + r * WARPS;
        const bool is_there = i < tile.rows;
        l[r] = load_quad(is_there ? logits.row(i) + start : nullptr, is_there ? count : 0, DEAD);
        const std::int64_t target = is_there ? targets[tile.first_row + i] : -1;
        const int hit = place_in_quad(target, tile.first_column + start);
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            top[k] = l[r].at[k] > top[k] ? l[r].at[k] : top[k];
            if (k == hit && k < count && l[r].at[k] != DEAD) positive[k] += l[r].at[k];
        }
    }
    SoftmaxSums sums[QUAD];
#pragma unroll
    for (int k = 0; k < QUAD; ++k) sums[k] = {top[k], 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int r = 0; r < ROWS_OF_THREAD; ++r) {
        const std::int64_t i = first_row + r * WARPS;
        Quad f{};
        if constexpr (soft) {
            const bool is_there = i < tile.rows;
            f = load_quad(is_there ? soft_targets.row(i) + start : nullptr, is_there ? count : 0, 0.0f);
        }
#pragma unroll
        for (int k = 0; k < QUAD; ++k) add_logit<soft>(sums[k], reference_of(top[k]), l[r].at[k], f.at[k]);
    }
#pragma unroll
    for (int k = 0; k < QUAD; ++k) {
        float* part = &parts[0][warp][lane * QUAD + k];
        write_part<soft>(part, WARPS * COLUMNS, sums[k]);
        part[SOFTMAX_SUMS * WARPS * COLUMNS] = positive[k];
    }
    __syncthreads();

    const std::int64_t column = first_column + threadIdx.x;
    if (threadIdx.x >= COLUMNS || column >= tile.columns) return;
    float of_positive;
    const SoftmaxSums total =
        column_total<soft>(&parts[0][0][threadIdx.x], WARPS, COLUMNS, WARPS * COLUMNS, of_positive);
    if (segments == 1) {
        add_to_statistics<soft>(statistics, tile.first_column + column, total);
        statistics.row(POSITIVE_LOGIT)[tile.first_column + column] += static_cast<double>(of_positive);
    } else {
        float* part = scratch + segment * tile.columns + column;
        write_part<soft>(part, segments * tile.columns, total);
        part[SOFTMAX_SUMS * segments * tile.columns] = of_positive;
    }
}

// A thread per column adds what the column's blocks left in scratch, (PARTS, segments, columns).
template <bool soft>
__global__ void __launch_bounds__(THREADS)
    add_column_segments(Tile tile, std::int64_t segments, const float* scratch, Matrix<double> statistics) {
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (column >= tile.columns) return;
    float of_positive;
    const SoftmaxSums total =
        column_total<soft>(scratch + column, segments, tile.columns, segments * tile.columns, of_positive);
    add_to_statistics<soft>(statistics, tile.first_column + column, total);
    statistics.row(POSITIVE_LOGIT)[tile.first_column + column] += static_cast<double>(of_positive);
}

template <bool soft>
void launch_sums(Queue queue, const DeviceLoss& loss, Tile tile, Matrix<const float> logits,
                 Matrix<const float> soft_targets, Matrix<double> statistics, float* scratch) {
    const std::int64_t segments = pieces(tile.rows, ROWS);
    launch(queue, "column_statistics", sum_columns<soft>, pieces(tile.columns, COLUMNS) * segments, THREADS,
           loss.targets, tile, logits, soft_targets, statistics, scratch);
    if (segments == 1) return;
    launch(queue, "column_statistics", add_column_segments<soft>, pieces(tile.columns, THREADS), THREADS, tile, segments,
           scratch, statistics);
}

}  // namespace

std::int64_t column_statistics_scratch(std::int64_t rows, std::int64_t columns) {
    const std::int64_t segments = pieces(rows, ROWS);
    return segments == 1 ? 0 : PARTS * segments * columns;
}

void column_statistics(Queue queue, const DeviceLoss& loss, Tile tile, Matrix<const float> logits,
                       Matrix<const float> soft, Matrix<double> statistics, float* scratch) {
    if (soft.data == nullptr) return launch_sums<false>(queue, loss, tile, logits, soft, statistics, scratch);
    launch_sums<true>(queue, loss, tile, logits, soft, statistics, scratch);
}

}  // namespace semivario
