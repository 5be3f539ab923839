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

template <VariogramKind kind, int n>
SEMIVARIO_HD void add_structure(const Structure& structure, const float (&lag)[n], float (&rho)[n]) {
    for (int k = 0; k < n; ++k) {
        rho[k] += structure.share * kind_correlation<kind>(lag[k] * structure.inverse_len_scale, structure.alpha);
    }
}

// ρ of n lags: the kind is looked up once for all of them.
template <int n>
SEMIVARIO_HD void correlation(const Variogram& variogram, const float (&lag)[n], float (&rho)[n]) {
    for (int k = 0; k < n; ++k) rho[k] = 0.0f;
    for (int i = 0; i < variogram.count; ++i) {
        const Structure& structure = variogram.structures[i];
        switch (structure.kind) {
            case VariogramKind::stable: add_structure<VariogramKind::stable>(structure, lag, rho); break;
            case VariogramKind::exponential: add_structure<VariogramKind::exponential>(structure, lag, rho); break;
            case VariogramKind::gaussian: add_structure<VariogramKind::gaussian>(structure, lag, rho); break;
            case VariogramKind::spherical: add_structure<VariogramKind::spherical>(structure, lag, rho); break;
            case VariogramKind::matern32: add_structure<VariogramKind::matern32>(structure, lag, rho); break;
        }
    }
}

SEMIVARIO_HD float semivariance(float nugget, float psill, float rho) { return nugget + psill * (1.0f - rho); }

}  // namespace semivario
