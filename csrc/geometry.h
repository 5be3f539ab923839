// Distance of two positions, given as unit vectors: the first third of the pair arithmetic, in float32. float64 is for
// matrices of distances.
//
// The distance comes from differences, never from the dot product, which is 3 km wrong at a distance of 1 m.
#pragma once

#include "elementary.h"

namespace semivario {

constexpr double EARTH_RADIUS_KM = 6371.0088, HALF_TURN_KM = 20015.114442035924;  // R, πR

template <typename T>
SEMIVARIO_HD T squared_norm(T x, T y, T z) {
    return x * x + y * y + z * z;
}

// P of asin(z) = z + z³·P(z²) on 0 ≤ z ≤ √½; the arc's relative error is 2e-8 before rounding.
SEMIVARIO_HD float arc_sine_series(float w) {
    float y = 1.11301862721e-1f;
    y = y * w - 9.25946473350e-2f;
    y = y * w + 7.69561749092e-2f;
    y = y * w + 1.63944616025e-2f;
    y = y * w + 4.65014055843e-2f;
    y = y * w + 7.48849047759e-2f;
    y = y * w + 1.66669054319e-1f;
    return y;
}

// The same in float64, relative error 1e-16.
SEMIVARIO_HD double arc_sine_series(double w) {
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
    return y;
}

SEMIVARIO_HD float square_root(float x) { return sqrtf(x); }
SEMIVARIO_HD double square_root(double x) { return sqrt(x); }

// h in km from near = ‖p−q‖² and far = ‖p+q‖²: twice the arc of the shorter half chord, from p to q or from p to
// q's antipode.
template <typename T>
SEMIVARIO_HD T great_circle_km(T near, T far) {
    const bool is_near = near < far;
    const T w = T(0.25) * (is_near ? near : far);  // z²
    const T z = square_root(w);
    const T km = T(2) * T(EARTH_RADIUS_KM) * (z + z * w * arc_sine_series(w));
    return is_near ? km : T(HALF_TURN_KM) - km;
}

// The straight line through the Earth, in km.
SEMIVARIO_HD float chord_km(float near) { return float(EARTH_RADIUS_KM) * sqrtf(near); }

}  // namespace semivario
