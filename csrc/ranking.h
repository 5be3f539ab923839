// A score and its place as one 64-bit key, so that the larger of two keys is the better entry of a ranking.
//
// Above, the score's bits in an order that unsigned comparison sorts, NaN over all numbers and −0 as 0; below, the
// complement of the index, so that of equal scores the smaller index is better. No two keys are equal, and none of
// fewer than 2³² entries is 0.
#pragma once

#include "elementary.h"

namespace semivario {

SEMIVARIO_HD std::uint64_t ranking_key(float score, std::int64_t index) {
    const std::uint32_t bits = bits_of(score + 0.0f);
    const std::uint32_t ordered = score != score ? 0xffffffffu : ((bits >> 31) != 0 ? ~bits : bits | 0x80000000u);
    return static_cast<std::uint64_t>(ordered) << 32 | ~static_cast<std::uint32_t>(index);
}

SEMIVARIO_HD float ranked_score(std::uint64_t key) {
    const std::uint32_t ordered = static_cast<std::uint32_t>(key >> 32);
    return float_of((ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

SEMIVARIO_HD std::int64_t ranked_index(std::uint64_t key) {
    return static_cast<std::int64_t>(~static_cast<std::uint32_t>(key));
}

}  // namespace semivario
