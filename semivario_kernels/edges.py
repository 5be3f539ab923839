"""Bin edges of distance: logarithmic, even, or quantiles of the distances themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels.checks import ArrayLike, check_latlon, check_number, check_whole
from semivario_kernels.geometry import EARTH_RADIUS_KM, unit_vectors

Floats = npt.NDArray[np.float64]

SAMPLED_PAIRS = 1_000_000


def log_edges_km(first_km: float, last_km: float, bins: int) -> Floats:
    """Bin edges 0, first_km, …, last_km: one bin from 0, and `bins` − 1 of equal ratio above it.

    Args:
        first_km: end of the first bin, km.
        last_km: end of the last bin, km.
        bins: number of bins.

    Returns:
        (bins+1,) float64 km.

    Raises:
        ValueError: not 0 < first_km < last_km, or fewer than 2 bins.
    """
    check_number("first_km", first_km, low=0, open_low=True)
    check_number("last_km", last_km, low=first_km, open_low=True)
    bins = check_whole("bins", bins, low=2)
    edges = np.concatenate([[0.0], np.geomspace(first_km, last_km, bins)])
    edges[1], edges[-1] = first_km, last_km
    return edges


def even_edges_km(last_km: float, bins: int) -> Floats:
    """Bin edges 0 … last_km of equal width.

    Args:
        last_km: end of the last bin, km.
        bins: number of bins.

    Returns:
        (bins+1,) float64 km.

    Raises:
        ValueError: last_km is not above 0, or no bin.
    """
    check_number("last_km", last_km, low=0, open_low=True)
    bins = check_whole("bins", bins, low=1)
    return np.linspace(0.0, last_km, bins + 1)


def quantile_edges_km(
    latlon: ArrayLike, bins: int, *, max_lag_km: float | None = None, seed: int = 0
) -> Floats:
    """Bin edges that hold about equally many pairs: quantiles of the distances of a million random pairs.

    Args:
        latlon: (N, 2) latitude and longitude in degrees.
        bins: number of bins; fewer come back where quantiles coincide, as they do among duplicates.
        max_lag_km: take the quantiles of the distances up to here; None takes all.
        seed: seed of the sample.

    Returns:
        (at most bins+1,) float64 km, from 0 to just above the largest distance of the sample, or max_lag_km.

    Raises:
        ValueError: bad coordinates, fewer than two places, no bin, or no pair within `max_lag_km`.
    """
    p = unit_vectors(check_latlon("latlon", latlon)).cpu()
    if len(p) < 2:
        raise ValueError(f"latlon: wanted at least 2 places, got {len(p)}")
    bins = check_whole("bins", bins, low=1)
    if max_lag_km is not None:
        check_number("max_lag_km", max_lag_km, low=0, open_low=True)
    generator = torch.Generator("cpu").manual_seed(check_whole("seed", seed, low=0))
    i = torch.randint(len(p), (SAMPLED_PAIRS,), generator=generator, device="cpu")
    step = torch.randint(1, len(p), (SAMPLED_PAIRS,), generator=generator, device="cpu")
    j = (i + step) % len(p)
    half_chord = (p[i] - p[j]).norm(dim=1) / 2
    h_km = np.asarray(2 * EARTH_RADIUS_KM * torch.asin(half_chord.clamp(max=1)).numpy())
    if max_lag_km is not None:
        h_km = h_km[h_km <= max_lag_km]
        if not len(h_km):
            raise ValueError(f"max_lag_km: none of {SAMPLED_PAIRS} random pairs lies within {max_lag_km} km")
    edges = np.quantile(h_km, np.linspace(0, 1, bins + 1))
    edges[0] = 0.0
    edges[-1] = np.nextafter(edges[-1], np.inf) if max_lag_km is None else max_lag_km
    return np.unique(edges)
