"""Positions and great-circle distance: the first third of the pair arithmetic, in torch.

The Earth is a sphere of radius R = 6371.0088 km (the mean radius of WGS84, IUGG). Positions become unit
vectors once, in float64; after that no pair needs a sine or a cosine. The distance comes from differences
of the vectors, never from their dot product, which loses 3 km at a distance of 1 m in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from semivario_kernels.checks import ArrayLike, check_latlon, check_same, like_input

EARTH_RADIUS_KM = 6371.0088
"""Radius of the sphere that stands for the Earth, km: the mean radius of WGS84 (IUGG)."""


def unit_vectors(latlon: torch.Tensor) -> torch.Tensor:
    """Turn (n, 2) degrees into (n, 3) float64 unit vectors; bad positions become NaN vectors."""
    degrees = latlon.double()
    latitude, longitude = torch.deg2rad(degrees).unbind(dim=1)
    vectors = torch.stack(
        (latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()), dim=1
    )
    valid = torch.isfinite(degrees).all(dim=1) & (degrees[:, 0].abs() <= 90)
    return torch.where(valid[:, None], vectors, torch.nan)


def squared_chords(p: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ‖p−q‖² and ‖p+q‖², each (n, m), of unit vectors (n, 3) and (m, 3)."""
    near = p.new_zeros(p.shape[0], q.shape[0])
    far = torch.zeros_like(near)
    for k in range(3):
        near += (p[:, k, None] - q[None, :, k]).square()
        far += (p[:, k, None] + q[None, :, k]).square()
    return near, far


def great_circle_km(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return h = 2R·atan2(‖p−q‖, ‖p+q‖), (n, m) km, of unit vectors (n, 3) and (m, 3)."""
    near, far = squared_chords(p, q)
    return 2 * EARTH_RADIUS_KM * torch.atan2(near.sqrt(), far.sqrt())


def chord_km(h_km: torch.Tensor) -> torch.Tensor:
    """Return the straight line through the Earth, 2R·sin(h/2R), for great-circle distances h."""
    return 2 * EARTH_RADIUS_KM * torch.sin(h_km / (2 * EARTH_RADIUS_KM))


def pairwise_haversine(a: ArrayLike, b: ArrayLike | None = None, *, backend: str | None = None) -> Any:
    """Great-circle distances of all pairs, on a sphere of `EARTH_RADIUS_KM`.

    They come from the chord between unit vectors, which is accurate at every distance: in float32 to the
    larger of 1 m and 1e-6 of the distance.

    Args:
        a: (N, 2) positions, latitude and longitude in degrees.
        b: (M, 2) positions; `a` itself when left out.
        backend: a name from `available_backends()`; None picks the fastest.

    Returns:
        (N, M) distances in km in the dtype of the positions, NumPy where NumPy came in. Longitudes outside
        ±180° are wrapped.

    Raises:
        ValueError: a shape other than (n, 2), no rows, NaN or infinite coordinates, latitudes outside ±90°,
            different devices or dtypes, a backend that is unknown or cannot run.
    """
    from semivario_kernels import backends

    first = check_latlon("a", a).detach()
    second = first if b is None else check_latlon("b", b).detach()
    check_same("device", "a", first, "b", second)
    check_same("dtype", "a", first, "b", second)
    p, q = unit_vectors(first), unit_vectors(second)
    h_km = backends.load(backend, first).pairwise_haversine(p, q, first.dtype)
    return like_input(h_km, a, b)
