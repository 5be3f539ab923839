"""Easting and northing of a UTM zone to latitude and longitude on WGS84."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAJOR_AXIS_M = 6378137.0
_FLATTENING = 1 / 298.257223563
_SCALE = 0.9996
_FALSE_EASTING_M, _FALSE_NORTHING_M = 500_000.0, 10_000_000.0  # the latter in the south only


def utm_to_latlon(
    easting_m: NDArray[np.float64], northing_m: NDArray[np.float64], zone: int, *, southern: bool
) -> NDArray[np.float64]:
    """(n, 2) degrees, by Krüger's series to the third order in n: millimetres within a zone.

    Source: Karney, 2011, "Transverse Mercator with an accuracy of a few nanometers", equations 11, 15 and 36.

    Args:
        easting_m: (n,) metres, the false easting of 500 km included.
        northing_m: (n,) metres, in the south with the false northing of 10,000 km.
        zone: 1 … 60.
        southern: whether the places lie in the south.

    Raises:
        ValueError: a zone outside 1 … 60, an easting outside 100 … 900 km or a northing outside
            0 … 10,000 km.
    """
    if not 1 <= zone <= 60:
        raise ValueError(f"zone: wanted between 1 and 60, got {zone}")
    for name, metres, low, high in (
        ("easting_m", easting_m, 1e5, 9e5),
        ("northing_m", northing_m, 0, 1e7),
    ):
        good = (metres >= low) & (metres <= high)
        if not good.all():
            raise ValueError(f"{name}: wanted between {low:,.0f} and {high:,.0f} m, got {metres[~good][0]}")
    n = _FLATTENING / (2 - _FLATTENING)
    radius = _MAJOR_AXIS_M / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    xi = (northing_m - (_FALSE_NORTHING_M if southern else 0)) / (_SCALE * radius)
    eta = (easting_m - _FALSE_EASTING_M) / (_SCALE * radius)
    beta = (n / 2 - 2 / 3 * n**2 + 37 / 96 * n**3, n**2 / 48 + n**3 / 15, 17 / 480 * n**3)
    north = xi - sum(b * np.sin(2 * j * xi) * np.cosh(2 * j * eta) for j, b in enumerate(beta, start=1))
    east = eta - sum(b * np.cos(2 * j * xi) * np.sinh(2 * j * eta) for j, b in enumerate(beta, start=1))
    conformal = np.arcsin(np.sin(north) / np.cosh(east))
    delta = (2 * n - 2 / 3 * n**2 - 2 * n**3, 7 / 3 * n**2 - 8 / 5 * n**3, 56 / 15 * n**3)
    latitude = conformal + sum(d * np.sin(2 * j * conformal) for j, d in enumerate(delta, start=1))
    longitude = np.radians(6 * zone - 183) + np.arctan2(np.sinh(east), np.cos(north))
    latlon: NDArray[np.float64] = np.degrees(np.stack([latitude, longitude], axis=1))
    return latlon
