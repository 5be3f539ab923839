// bfloat16's conversions of CUDA's <cuda_bf16.h>.
#pragma once

struct __nv_bfloat16 {
    unsigned short bits;
};

// to nearest, ties to even
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if (value != value) return {0x7fff};
    return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
