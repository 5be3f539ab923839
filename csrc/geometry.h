// Distance of two positions, given as unit vectors: the first third of the pair arithmetic, in float32. float64 is for
// matrices of distances.
//
// The distance comes from differences, never from the dot product, which is 3 km wrong at a distance of 1 m.
#pragma once

#include "elementary.h"

namespace semivario {

constexpr double EXACT_RADIUS_KM = 6371.0088, EXACT_HALF_TURN_KM = 20015.114442035924;  // R, πR
constexpr float EARTH_RADIUS_KM = static_cast<float>(EXACT_RADIUS_KM);
constexpr float HALF_TURN_KM = static_cast<float>(EXACT_HALF_TURN_KM);

template <typename T>
SEMIVARIO_HD T squared_norm(T x, T y, T z) {
    return x * x + y * y + z * z;
}

// h in km from near = ‖p−q‖² and far = ‖p+q‖²: twice the arc of the shorter half chord, from p to q or from p to
// q's antipode. The arc is asin(z) = z + z³·P(z²) on 0 ≤ z ≤ √½, relative error 2e-8 before rounding.
SEMIVARIO_HD float great_circle_km(float near, float far) {
    const bool is_near = near < far;
    const float w = 0.25f * (is_near ? near : far);  // z²
    const float z = sqrtf(w);
    float y = 1.11301862721e-1f;
    y = y * w - 9.25946473350e-2f;
    y = y * w + 7.69561749092e-2f;
    y = y * w + 1.63944616025e-2f;
    y = y * w + 4.65014055843e-2f;
    y = y * w + 7.48849047759e-2f;
    y = y * w + 1.66669054319e-1f;
    const float km = 2.0f * EARTH_RADIUS_KM * (z + z * w * y);
    return is_near ? km : HALF_TURN_KM - km;
}

// The same in float64, relative error 1e-16 before rounding.
SEMIVARIO_HD double great_circle_km(double near, double far) {
    const bool is_near = near < far;
    const double w = 0.25 * (is_near ? near : far);
    const double z = sqrt(w);
    double y = 7.287969708921092179e-1;
    y = y * w - 2.519963475033790247;
    y = y * w + 4.153379312142057554;
    y = y * w - 4.190574076419056319;
    y = y * w + 2.900390551100361885;
    y = y * w - 1.427654638503216545;
    y = y * w + 5.316094954503181214e-1;
    y = y * w - 1.349182680255664805e-1;
    y = y * w + 3.913945386974736603e-2;
    y = y * w + 7.058903162401961987e-3;
    y = y * w + 1.447049266885505973e-2;
    y = y * w + 1.731185885495455573e-2;
    y = y * w + 2.237445217859928194e-2;
    y = y * w + 3.038186026188581181e-2;
    y = y * w + 4.464285899080667264e-2;
    y = y * w + 7.499999997938014871e-2;
    y = y * w + 1.666666666667475174e-1;
    const double km = 2.0 * EXACT_RADIUS_KM * (z + z * w * y);
    return is_near ? km : EXACT_HALF_TURN_KM - km;
}

// The straight line through the Earth, in km.
SEMIVARIO_HD float chord_km(float near) { return EARTH_RADIUS_KM * sqrtf(near); }

}  // namespace semivario
