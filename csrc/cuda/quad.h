// Four neighbouring columns, one thread's share of a row: one 16-byte access where the address allows it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "tile_kernels.h"

namespace semivario {

constexpr int QUAD = 4;

struct Quad {
    float at[QUAD];
};

__device__ __forceinline__ bool is_whole(const float* address, int count) {
    return count == QUAD && (reinterpret_cast<std::uintptr_t>(address) & 15u) == 0;
}

// The first `count` of four values, `missing` in place of the others.
__device__ __forceinline__ Quad load_quad(const float* address, int count, float missing) {
    Quad quad;
    if (is_whole(address, count)) {
        const float4 all = *reinterpret_cast<const float4*>(address);
        quad = {all.x, all.y, all.z, all.w};
    } else {
#pragma unroll
        for (int k = 0; k < QUAD; ++k) quad.at[k] = k < count ? address[k] : missing;
    }
    return quad;
}

__device__ __forceinline__ void store_quad(float* address, int count, const float (&values)[QUAD]) {
    if (is_whole(address, count)) {
        *reinterpret_cast<float4*>(address) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            if (k < count) address[k] = values[k];
        }
    }
}

constexpr float FLOAT16_MAX = 65504.0f;

__device__ __forceinline__ float widen(std::uint16_t bits, Element element) {
    if (element == Element::float16) return __half2float(__ushort_as_half(bits));
    return float_of(static_cast<std::uint32_t>(bits) << 16);
}

// Rounded to nearest; what float16 cannot hold becomes its largest number.
__device__ __forceinline__ std::uint16_t narrow(float value, Element element) {
    if (element == Element::bfloat16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
    value = value > FLOAT16_MAX ? FLOAT16_MAX : (value < -FLOAT16_MAX ? -FLOAT16_MAX : value);
    return __half_as_ushort(__float2half_rn(value));
}

__device__ __forceinline__ bool is_whole(const std::uint16_t* address, int count) {
    return count == QUAD && (reinterpret_cast<std::uintptr_t>(address) & 7u) == 0;
}

// As load_quad and store_quad, from row i of a matrix whose elements may be shorter.
__device__ __forceinline__ Quad load_quad(const ElementMatrix& matrix, std::int64_t i, std::int64_t start, int count,
                                          float missing) {
    const std::int64_t offset = i * matrix.stride + start;
    if (matrix.element == Element::float32) {
        return load_quad(static_cast<const float*>(matrix.data) + offset, count, missing);
    }
    const std::uint16_t* address = static_cast<const std::uint16_t*>(matrix.data) + offset;
    Quad quad;
    if (is_whole(address, count)) {
        const ushort4 all = *reinterpret_cast<const ushort4*>(address);
        quad = {widen(all.x, matrix.element), widen(all.y, matrix.element), widen(all.z, matrix.element),
                widen(all.w, matrix.element)};
    } else {
#pragma unroll
        for (int k = 0; k < QUAD; ++k) quad.at[k] = k < count ? widen(address[k], matrix.element) : missing;
    }
    return quad;
}

__device__ __forceinline__ void store_quad(const ElementMatrix& matrix, std::int64_t i, std::int64_t start, int count,
                                           const float (&values)[QUAD]) {
    const std::int64_t offset = i * matrix.stride + start;
    if (matrix.element == Element::float32) {
        return store_quad(static_cast<float*>(matrix.data) + offset, count, values);
    }
    std::uint16_t* address = static_cast<std::uint16_t*>(matrix.data) + offset;
    if (is_whole(address, count)) {
        *reinterpret_cast<ushort4*>(address) =
            make_ushort4(narrow(values[0], matrix.element), narrow(values[1], matrix.element),
                         narrow(values[2], matrix.element), narrow(values[3], matrix.element));
    } else {
#pragma unroll
        for (int k = 0; k < QUAD; ++k) {
            if (k < count) address[k] = narrow(values[k], matrix.element);
        }
    }
}

// How many of the four columns from `start` on lie within a row of `columns`.
__device__ __forceinline__ int quad_size(std::int64_t start, std::int64_t columns) {
    const std::int64_t left = columns - start;
    return left < 0 ? 0 : (left > QUAD ? QUAD : static_cast<int>(left));
}

// Which of the four columns from `start` on is `column`; −1 for none.
__device__ __forceinline__ int place_in_quad(std::int64_t column, std::int64_t start) {
    const std::int64_t place = column - start;
    return place < 0 || place >= QUAD ? -1 : static_cast<int>(place);
}

}  // namespace semivario
