// A policy and a semivariogram as they come from Python, by name and in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "policy.h"
#include "variogram.h"

namespace semivario {

inline const std::map<std::string, PolicyKind> POLICY_KINDS = {
    {"none", PolicyKind::none},           {"semivariogram", PolicyKind::semivariogram},
    {"explained", PolicyKind::explained}, {"threshold", PolicyKind::threshold},
    {"rectify", PolicyKind::rectify},     {"penalty", PolicyKind::penalty},
    {"distance", PolicyKind::distance},   {"distance_linear", PolicyKind::distance_linear},
};

inline const std::map<std::string, VariogramKind> VARIOGRAM_KINDS = {
    {"stable", VariogramKind::stable},       {"exponential", VariogramKind::exponential},
    {"gaussian", VariogramKind::gaussian},   {"spherical", VariogramKind::spherical},
    {"matern32", VariogramKind::matern32},
};

template <typename Kind>
Kind find_kind(const std::map<std::string, Kind>& kinds, const std::string& argument, const std::string& name) {
    const auto found = kinds.find(name);
    if (found != kinds.end()) return found->second;
    std::string names;
    for (const auto& entry : kinds) names += (names.empty() ? "" : ", ") + entry.first;
    throw std::invalid_argument(argument + ": wanted one of " + names + ", got '" + name + "'");
}

// The policy's kind, where everything it reads is there.
inline PolicyKind checked_policy_kind(const std::string& name, const std::string& metric, bool has_variogram,
                                      bool has_positions, bool has_dissimilarity) {
    if (metric != "arc" && metric != "chord") {
        throw std::invalid_argument("metric: wanted 'arc' or 'chord', got '" + metric + "'");
    }
    const PolicyKind kind = find_kind(POLICY_KINDS, "policy_kind", name);
    if (reads_dissimilarity(kind) && !has_variogram) {
        throw std::invalid_argument("structures: policy '" + name + "' wants a variogram, got none");
    }
    if (kind != PolicyKind::none && !has_positions) {
        throw std::invalid_argument("p, q: policy '" + name + "' wants positions, got none");
    }
    if (reads_dissimilarity(kind) && !has_dissimilarity) {
        throw std::invalid_argument("image_v, inverse_u: policy '" + name + "' wants embeddings, got none");
    }
    return kind;
}

inline float rounded_down(double x) {
    const float nearest = static_cast<float>(x);
    return static_cast<double>(nearest) > x ? std::nextafter(nearest, -INFINITY) : nearest;
}

inline Policy make_policy(const std::map<std::string, double>& values, double sill) {
    const auto value = [&values](const char* name) {
        const auto found = values.find(name);
        if (found == values.end()) throw std::invalid_argument(std::string("policy: wanted a value for '") + name + "'");
        return found->second;
    };
    const auto inverse = [](double x) { return static_cast<float>(x > 0 ? 1 / x : 0); };
    return {static_cast<float>(value("hard")), static_cast<float>(value("false")),
            static_cast<float>(value("far")),  static_cast<float>(value("tolerance")),
            static_cast<float>(value("mass")), rounded_down(value("range_km")),
            static_cast<float>(value("strength")), inverse(value("scale_km")),
            static_cast<float>(value("weight")), inverse(sill)};
}

using StructureTuple = std::tuple<std::string, double, double, double>;  // kind, share, len_scale_km, alpha

inline Variogram make_variogram(const std::vector<StructureTuple>& structures, double nugget, double psill) {
    if (structures.size() > MAX_STRUCTURES) {
        throw std::invalid_argument("structures: wanted at most " + std::to_string(MAX_STRUCTURES) + ", got " +
                              std::to_string(structures.size()));
    }
    Variogram variogram{};
    variogram.nugget = static_cast<float>(nugget);
    variogram.psill = static_cast<float>(psill);
    for (const auto& [kind, share, len_scale_km, alpha] : structures) {
        variogram.structures[variogram.count++] = {find_kind(VARIOGRAM_KINDS, "structures", kind),
                                                   static_cast<float>(share), static_cast<float>(1 / len_scale_km),
                                                   static_cast<float>(alpha)};
    }
    return variogram;
}

}  // namespace semivario
