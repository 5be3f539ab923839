// The sums of a softmax over a row or a column, built up from parts: max, Σexp(l − max), Σl, Σf, Σf·l.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "../tile.h"

namespace semivario {

struct SoftmaxSums {
    float top, exp, logits, soft, soft_logits;
};

constexpr int SOFTMAX_SUMS = 5;
constexpr unsigned WHOLE_WARP = 0xffffffffu;
constexpr int WARP = 32;

// What exponents are taken relative to: not −∞, where nothing is alive.
__device__ __forceinline__ float reference_of(float top) { return top == DEAD ? 0.0f : top; }

// Adds one logit; `reference` comes from the largest of all. −∞ adds nothing.
template <bool soft>
__device__ __forceinline__ void add_logit(SoftmaxSums& sums, float reference, float l, float f) {
    const float live = l == DEAD ? 0.0f : l;
    sums.exp += exp_f(l - reference);
    sums.logits += live;
    if constexpr (soft) {
        sums.soft += f;
        sums.soft_logits += f * live;
    }
}

// Parts lie as (SOFTMAX_SUMS, …) arrays, `value_stride` apart; without `soft` the last two are not there.
template <bool soft>
__device__ __forceinline__ void write_part(float* part, std::int64_t value_stride, const SoftmaxSums& sums) {
    part[0] = sums.top;
    part[value_stride] = sums.exp;
    part[2 * value_stride] = sums.logits;
    if constexpr (soft) {
        part[3 * value_stride] = sums.soft;
        part[4 * value_stride] = sums.soft_logits;
    }
}

// Adds the part at `part` to sums relative to `reference`.
template <bool soft>
__device__ __forceinline__ void add_part(SoftmaxSums& sums, float reference, const float* part,
                                         std::int64_t value_stride) {
    sums.exp += part[value_stride] * exp_f(part[0] - reference);
    sums.logits += part[2 * value_stride];
    if constexpr (soft) {
        sums.soft += part[3 * value_stride];
        sums.soft_logits += part[4 * value_stride];
    }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(WHOLE_WARP, value, lane);
    return value;
}

// A warp adds `count` parts, in an order that depends on nothing else; every lane gets the result.
template <bool soft>
__device__ __forceinline__ SoftmaxSums warp_total(const float* parts, std::int64_t count, std::int64_t value_stride) {
    const int lane = threadIdx.x % WARP;
    SoftmaxSums total{DEAD, 0.0f, 0.0f, 0.0f, 0.0f};
    for (std::int64_t k = lane; k < count; k += WARP) total.top = parts[k] > total.top ? parts[k] : total.top;
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) {
        const float theirs = __shfl_xor_sync(WHOLE_WARP, total.top, other);
        total.top = theirs > total.top ? theirs : total.top;
    }
    const float reference = reference_of(total.top);
    for (std::int64_t k = lane; k < count; k += WARP) add_part<soft>(total, reference, parts + k, value_stride);
    total.exp = warp_sum(total.exp);
    total.logits = warp_sum(total.logits);
    if constexpr (soft) {
        total.soft = warp_sum(total.soft);
        total.soft_logits = warp_sum(total.soft_logits);
    }
    return total;
}

// Adds the sums of a tile to those of all tiles before it, column `place` of `statistics`.
template <bool soft>
__device__ __forceinline__ void add_to_statistics(Matrix<double> statistics, std::int64_t place,
                                                  const SoftmaxSums& sums) {
    double* of_place = statistics.data + place;
    const std::int64_t stride = statistics.stride;
    const double before = of_place[TOP * stride], found = static_cast<double>(sums.top);
    const double top = found > before ? found : before;
    double total = of_place[SUM_EXP * stride], added = static_cast<double>(sums.exp);
    if (top > before) total *= exp(before - top);
    if (top > found && found > static_cast<double>(DEAD)) added *= exp(found - top);
    of_place[TOP * stride] = top;
    of_place[SUM_EXP * stride] = total + added;
    of_place[SUM_LOGITS * stride] += static_cast<double>(sums.logits);
    if constexpr (soft) {
        of_place[SUM_SOFT * stride] += static_cast<double>(sums.soft);
        of_place[SUM_SOFT_LOGITS * stride] += static_cast<double>(sums.soft_logits);
    }
}

}  // namespace semivario
