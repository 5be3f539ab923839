// Negative policies: the last third of the pair arithmetic.
#pragma once

#include "elementary.h"

namespace semivario {

enum class PolicyKind {
    none,
    semivariogram,
    explained,
    threshold,
    rectify,
    penalty,
    distance,
    distance_linear,
};

struct Policy {
    float hard, false_, far, tolerance, mass;
    float range_km;  // rounded down, so that h > range_km decides as with the unrounded range
    float strength, inverse_scale, weight;
    float inverse_sill;  // 1 / (nugget + psill); 0 where the sill is 0
};

// What a policy says of a negative pair: l = a·s·⟨x, y⟩ + b, and soft-target mass f.
struct PairTerms {
    float a, b, f;
};

SEMIVARIO_HD constexpr bool reads_dissimilarity(PolicyKind kind) {
    return kind == PolicyKind::semivariogram || kind == PolicyKind::explained || kind == PolicyKind::threshold ||
           kind == PolicyKind::rectify || kind == PolicyKind::penalty;
}

SEMIVARIO_HD constexpr bool reads_arc(PolicyKind kind) {
    return kind == PolicyKind::threshold || kind == PolicyKind::penalty || kind == PolicyKind::distance ||
           kind == PolicyKind::distance_linear;
}

// The dissimilarity of a pair of which one has no image: alike to nothing, and for `penalty`, which is for those
// that are less alike than expected, not that either.
template <PolicyKind kind>
SEMIVARIO_HD constexpr float blank_dissimilarity() {
    return kind == PolicyKind::penalty ? -INFINITY : INFINITY;
}

// h in km; d, γ(h) and ρ(h) where the kind reads the dissimilarity.
template <PolicyKind kind>
SEMIVARIO_HD PairTerms pair_terms(const Policy& policy, float h, float d, float gamma, float rho) {
    if constexpr (kind == PolicyKind::none) return {1.0f, 0.0f, 0.0f};
    if constexpr (kind == PolicyKind::distance) {
        const float b = LN_2 * log2_f(1.0f + policy.strength * exp_f(-h * policy.inverse_scale));
        return {1.0f, b + 0.0f * h, 0.0f};  // log2_f loses NaN
    }
    if constexpr (kind == PolicyKind::distance_linear) {
        return {1.0f, -policy.weight * exp_f(-h * policy.inverse_scale), 0.0f};
    }
    const float surprise = gamma - d;
    if constexpr (kind == PolicyKind::penalty) {
        const float factor = exp2_f(LOG2_E * positive_part(-surprise));
        return {h > policy.range_km ? 1.0f : factor, 0.0f, 0.0f};
    }
    const float excess = positive_part(surprise - policy.tolerance);
    if constexpr (kind == PolicyKind::threshold) {
        return {1.0f, (h > policy.range_km ? policy.hard : -policy.false_) * excess, 0.0f};
    }
    if constexpr (kind == PolicyKind::explained) {
        const float alike = policy.inverse_sill > 0.0f ? positive_part(1.0f - d * policy.inverse_sill) : 0.0f;
        return {1.0f, (1.0f - rho) * (policy.hard * excess + policy.far) - policy.false_ * rho * alike, 0.0f};
    }
    const float b = excess * (policy.hard * (1.0f - rho) - policy.false_ * rho);
    if constexpr (kind == PolicyKind::rectify) {
        const float ratio = excess / gamma;
        const float alike = gamma > 0.0f ? (ratio > 1.0f ? 1.0f : ratio) : 0.0f;
        return {1.0f, b, policy.mass * alike * rho};
    }
    return {1.0f, b, 0.0f};  // kind == semivariogram
}

}  // namespace semivario
