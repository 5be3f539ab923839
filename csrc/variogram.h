// The semivariogram γ(h) and its correlation ρ(h): the second third of the pair arithmetic.
#pragma once

#include "elementary.h"

namespace semivario {

enum class VariogramKind { stable, exponential, gaussian, spherical, matern32 };

constexpr int MAX_STRUCTURES = 16;

struct Structure {
    VariogramKind kind;
    float share;  // of the partial sill; the shares sum to 1
    float inverse_len_scale;
    float alpha;
};

// γ = nugget + psill·(1 − ρ), ρ = Σ share_k·ρ_k(lag / len_scale_k)
struct Variogram {
    Structure structures[MAX_STRUCTURES];
    int count;
    float nugget, psill;
};

// ρ of one structure at z = lag / length scale, with GSTools' formulas and rescaling.
template <VariogramKind kind>
SEMIVARIO_HD float kind_correlation(float z, float alpha) {
    if constexpr (kind == VariogramKind::stable) return exp_f(-pow_f(z, alpha));
    if constexpr (kind == VariogramKind::exponential) return exp_f(-z);
    if constexpr (kind == VariogramKind::gaussian) return exp_f(-0.785398163397448f * (z * z));  // π/4
    if constexpr (kind == VariogramKind::spherical) {
        z = z > 1.0f ? 1.0f : z;
        return (1.0f - z) * (1.0f - z) * (1.0f + 0.5f * z);  // = 1 − 1.5z + 0.5z³, without its cancellation
    }
    if constexpr (kind == VariogramKind::matern32) {
        z = 1.224744871391589f * z;  // √1.5
        z = z > 200.0f ? 200.0f : z;  // where e⁻ᶻ is 0: keeps 0·∞ away
        return (1.0f + z) * exp_f(-z);
    }
}

SEMIVARIO_HD float structure_correlation(const Structure& s, float lag) {
    const float z = lag * s.inverse_len_scale;
    switch (s.kind) {
        case VariogramKind::stable: return kind_correlation<VariogramKind::stable>(z, s.alpha);
        case VariogramKind::exponential: return kind_correlation<VariogramKind::exponential>(z, s.alpha);
        case VariogramKind::gaussian: return kind_correlation<VariogramKind::gaussian>(z, s.alpha);
        case VariogramKind::spherical: return kind_correlation<VariogramKind::spherical>(z, s.alpha);
        default: return kind_correlation<VariogramKind::matern32>(z, s.alpha);
    }
}

SEMIVARIO_HD float correlation(const Variogram& variogram, float lag) {
    float rho = 0.0f;
    for (int k = 0; k < variogram.count; ++k) {
        rho += variogram.structures[k].share * structure_correlation(variogram.structures[k], lag);
    }
    return rho;
}

SEMIVARIO_HD float semivariance(float nugget, float psill, float rho) { return nugget + psill * (1.0f - rho); }

}  // namespace semivario
