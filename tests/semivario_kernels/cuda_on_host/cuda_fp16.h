// float16's conversions of CUDA's <cuda_fp16.h>, by the compiler's own type.
#pragma once

using __half = _Float16;

inline __half __ushort_as_half(unsigned short bits) {
    __half value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned short __half_as_ushort(__half value) {
    unsigned short bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
