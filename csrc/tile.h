// What the tile kernels of the CPU and of the GPU share: how a tile lies in memory, and the gradient of the softmax.
#pragma once

#include "elementary.h"

#if defined(__CUDACC__)
#define SEMIVARIO_MEMBER __host__ __device__
#else
#define SEMIVARIO_MEMBER
#endif

namespace semivario {

constexpr float DEAD = -INFINITY;  // the logit of an excluded pair

struct Tile {
    std::int64_t first_row, rows, first_column, columns;
};

// A matrix with contiguous columns; null where there is none.
template <typename T>
struct Matrix {
    T* data;
    std::int64_t stride;
    SEMIVARIO_MEMBER T* row(std::int64_t i) const { return data == nullptr ? nullptr : data + i * stride; }
};

// Rows of `statistics`
enum Statistic { TOP, SUM_EXP, SUM_LOGITS, SUM_SOFT, SUM_SOFT_LOGITS, POSITIVE_LOGIT };

// What the gradient reads of every row or column: T = hard·(1[positive] + f) + smooth.
struct Side {
    const float *log_sum_exp, *weight, *hard, *smooth;
};

struct SideValues {
    float log_sum_exp, weight, hard, smooth;
};

SEMIVARIO_HD SideValues side_at(const Side& side, std::int64_t i) {
    return {side.log_sum_exp[i], side.weight[i], side.hard[i], side.smooth[i]};
}

// w·(exp(l − lse) − T)
SEMIVARIO_HD float side_gradient(SideValues side, float l, float mass) {
    return side.weight * (exp_f(l - side.log_sum_exp) - (side.hard * mass + side.smooth));
}

// What the policy left in `extra` for the gradient.
enum class Extra { none, factor, soft };

}  // namespace semivario
