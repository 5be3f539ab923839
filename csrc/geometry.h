// Distance of two positions, given as float32 unit vectors: the first third of the pair arithmetic.
//
// The distance comes from differences, never from the dot product, which is 3 km wrong at a distance of 1 m.
#pragma once

#include "elementary.h"

namespace semivario {

constexpr float EARTH_RADIUS_KM = 6371.0088f;
constexpr float HALF_TURN_KM = 20015.114352186374f;  // πR

SEMIVARIO_HD float squared_norm(float x, float y, float z) { return x * x + y * y + z * z; }

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

// The straight line through the Earth, in km.
SEMIVARIO_HD float chord_km(float near) { return EARTH_RADIUS_KM * sqrtf(near); }

}  // namespace semivario
