// Elementary functions of the pair arithmetic in float32: exp, 2^x, log2 by polynomials of our own.
//
// They have no table and no branch, so that loops over them become SIMD code, and they give the same numbers on
// the host and on the device. Coefficients: Remez exchange in 40 digits on the stated interval. NaN comes out as
// NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SEMIVARIO_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define SEMIVARIO_HD static __forceinline
#else
// static: each translation unit, compiled for its own instruction set, keeps its own copy
#define SEMIVARIO_HD static inline __attribute__((always_inline))
#endif

namespace semivario {

SEMIVARIO_HD std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

SEMIVARIO_HD float float_of(std::uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

SEMIVARIO_HD float positive_part(float x) { return x < 0.0f ? 0.0f : x; }

// 1.5·2²³: adding it rounds to an integer, which then stands in the lowest bits
constexpr float ROUNDER = 12582912.0f;
constexpr float LOG2_E = 1.442695040888963f;
constexpr float LN_2 = 0.693147180559945f;

// 2^(n + r) for the integer n that `rounded` = n + ROUNDER holds and |r| ≤ ½; relative error 9e-8 before rounding.
// n = −127 gives 0 and n = 128 infinity.
SEMIVARIO_HD float exp2_of_parts(float rounded, float r) {
    float y = 1.32646998751e-3f;
    y = y * r + 9.67153390324e-3f;
    y = y * r + 5.55073400078e-2f;
    y = y * r + 2.40222417608e-1f;
    y = y * r + 6.93146977356e-1f;
    y = y * r + 1.0f;
    return y * float_of((bits_of(rounded) + 127u) << 23);
}

// 2^x, relative error below 2e-7; 0 below 2⁻¹²⁶ and infinity above 2¹²⁷·⁵.
SEMIVARIO_HD float exp2_f(float x) {
    x = x < -127.0f ? -127.0f : x;
    x = x > 128.0f ? 128.0f : x;
    const float rounded = x + ROUNDER;
    return exp2_of_parts(rounded, x - (rounded - ROUNDER));
}

// e^x for x ≤ 88, relative error below 2e-7 (with |x|·2e-8 more, |x|·6e-8 without fused multiply-add); 0 below
// 2⁻¹²⁶.
SEMIVARIO_HD float exp_f(float x) {
    x = x < -88.0f ? -88.0f : x;
    const float rounded = x * LOG2_E + ROUNDER;
    return exp2_of_parts(rounded, x * LOG2_E - (rounded - ROUNDER));
}

// log2(x) for normal x > 0; error below 2e-7 relative or one rounding of the result. NaN is not kept.
SEMIVARIO_HD float log2_f(float x) {
    constexpr std::uint32_t SQRT_HALF = 0x3f3504f3u;  // mantissas from √½ to √2, so that log2 is smallest near 1
    const std::uint32_t shifted = bits_of(x) - SQRT_HALF;
    const float exponent = static_cast<float>(static_cast<std::int32_t>(shifted) >> 23);
    const float t = float_of((shifted & 0x007fffffu) + SQRT_HALF) - 1.0f;
    float y = -1.45811653506e-1f;
    y = y * t + 2.34042342653e-1f;
    y = y * t - 2.48876864703e-1f;
    y = y * t + 2.87098703285e-1f;
    y = y * t - 3.60239640103e-1f;
    y = y * t + 4.80923242189e-1f;
    y = y * t - 7.21352788053e-1f;
    y = y * t + 1.44269496199f;
    return y * t + exponent;
}

// z^alpha for z ≥ 0 and alpha > 0, where 0 stays 0 and NaN stays NaN.
SEMIVARIO_HD float pow_f(float z, float alpha) {
    const float power = exp2_f(alpha * log2_f(z));
    return z > 0.0f ? power : z;
}

}  // namespace semivario
