// Logits of a tile → A = g·a/|y_j|, g = Σ over the sides of w·(exp(l − lse) − T).
//
//   grid     one block per ROWS rows × COLUMNS columns
//   thread   four neighbouring columns, whose vectors stay in registers for all rows
//   reads    l, 4 bytes a pair (a or f, 4 more, for penalty and rectify); writes A, 2 or 4
#include "launch.h"
#include "quad.h"

namespace semivario {
namespace {

constexpr int THREADS = 256;
constexpr int COLUMNS = THREADS * QUAD;
constexpr int ROWS = 8;

template <Extra read, bool both_sides>
__global__ void __launch_bounds__(THREADS)
    gradient_tile(const float* inverse_y, const std::int64_t* targets, Tile tile, Matrix<const float> logits,
                  Matrix<const float> extra, Side row_side, Side column_side, ElementMatrix out) {
    const std::int64_t segments = (tile.columns + COLUMNS - 1) / COLUMNS;
    const std::int64_t segment = blockIdx.x % segments, first = blockIdx.x / segments * ROWS;
    const std::int64_t start = segment * COLUMNS + threadIdx.x * QUAD, column = tile.first_column + start;
    const std::int64_t end = first + ROWS < tile.rows ? first + ROWS : tile.rows;
    const int count = quad_size(start, tile.columns);
    if (count == 0) return;

    const Quad inverse = load_quad(inverse_y + column, count, 0.0f);
    Quad lse{}, weight{}, hard{}, smooth{};
    if constexpr (both_sides) {
        lse = load_quad(column_side.log_sum_exp + column, count, 0.0f);
        weight = load_quad(column_side.weight + column, count, 0.0f);
        hard = load_quad(column_side.hard + column, count, 0.0f);
        smooth = load_quad(column_side.smooth + column, count, 0.0f);
    }
    for (std::int64_t i = first; i < end; ++i) {
        const std::int64_t row = tile.first_row + i;
        const SideValues side = side_at(row_side, row);
        const int positive = place_in_quad(targets[row], column);
        const Quad l = load_quad(logits.row(i) + start, count, DEAD);
        Quad kept{};
        if constexpr (read != Extra::none) kept = load_quad(extra.row(i) + start, count, 0.0f);
        float a[QUAD];
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            const float soft = read == Extra::soft ? kept.at[k] : 0.0f;
            const float mass = k == positive ? 1.0f : soft;
            float g = side_gradient(side, l.at[k], mass);
            if constexpr (both_sides) {
                g += side_gradient({lse.at[k], weight.at[k], hard.at[k], smooth.at[k]}, l.at[k], mass);
            }
            const float factor = read == Extra::factor ? kept.at[k] * inverse.at[k] : inverse.at[k];
            a[k] = l.at[k] == DEAD ? 0.0f : g * factor;
        }
        store_quad(out, i, start, count, a);
    }
}

template <Extra read>
void launch_gradient(Queue queue, const DeviceLoss& loss, Tile tile, Matrix<const float> logits,
                     Matrix<const float> extra, Side row_side, const Side* column_side, ElementMatrix out) {
    const std::int64_t blocks = pieces(tile.rows, ROWS) * pieces(tile.columns, COLUMNS);
    const auto kernel = column_side == nullptr ? gradient_tile<read, false> : gradient_tile<read, true>;
    launch(queue, "gradient", kernel, blocks, THREADS, loss.inverse_y, loss.targets, tile, logits, extra, row_side,
           column_side == nullptr ? Side{} : *column_side, out);
}

}  // namespace

void gradient(Queue queue, const DeviceLoss& loss, Tile tile, Matrix<const float> logits, Matrix<const float> extra,
              Side row_side, const Side* column_side, ElementMatrix out) {
    switch (loss.policy_kind) {
        case PolicyKind::penalty:
            return launch_gradient<Extra::factor>(queue, loss, tile, logits, extra, row_side, column_side, out);
        case PolicyKind::rectify:
            return launch_gradient<Extra::soft>(queue, loss, tile, logits, extra, row_side, column_side, out);
        default: return launch_gradient<Extra::none>(queue, loss, tile, logits, extra, row_side, column_side, out);
    }
}

}  // namespace semivario
