"""Binned semivariance of embeddings on the sphere: the empirical semivariogram."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels import backends
from semivario_kernels.checks import (
    ArrayLike,
    as_tensor,
    check_latlon,
    check_matrix,
    check_number,
    check_same,
)
from semivario_kernels.dissimilarity import has_image
from semivario_kernels.empirical_variogram import EmpiricalVariogram, Floats, from_sums
from semivario_kernels.geometry import EARTH_RADIUS_KM, unit_vectors

Estimator = Literal["matheron", "cressie-hawkins", "dowd"]
ESTIMATORS = ("matheron", "cressie-hawkins", "dowd")

HISTOGRAM_CELLS = 8192  # of d in [0, 2], for the median: it is right to half a cell, 1.2e-4


@dataclass(frozen=True)
class PairSample:
    """Which pairs of tiles are measured: all, or as many as hold at most `max_pairs` pairs."""

    max_pairs: int | None
    seed: int


@dataclass
class BinnedSums:
    """Per-bin sums over the pairs, as the backends return them, on the CPU.

    Attributes:
        counts: (K,) int64.
        sum_h: (K,) float64, km; sum_d, sum_d2, sum_d_quarter alike of d, d² and d^¼.
        histogram: (K, HISTOGRAM_CELLS) int64 counts of d, or None where not asked for.
        duplicates: pairs at distance 0.
        sampled: whether pairs were left out.
    """

    counts: torch.Tensor
    sum_h: torch.Tensor
    sum_d: torch.Tensor
    sum_d2: torch.Tensor
    sum_d_quarter: torch.Tensor
    histogram: torch.Tensor | None
    duplicates: int
    sampled: bool


def binned_semivariance(
    embeddings: ArrayLike,
    latlon: ArrayLike,
    *,
    edges_km: ArrayLike,
    other: ArrayLike | None = None,
    other_latlon: ArrayLike | None = None,
    estimator: Estimator = "matheron",
    max_lag_km: float | None = None,
    max_pairs: int | None = None,
    seed: int | None = None,
    progress: bool = False,
    backend: str | None = None,
) -> EmpiricalVariogram:
    """Empirical semivariogram of embeddings: the mean dissimilarity 1 − cos of pairs, per distance bin.

    For unit vectors this is Matheron's estimator (Matheron, 1963) summed over the dimensions. Every pair
    i < j counts once; with `other` every pair (i, j) of the two sets counts.

    Args:
        embeddings: (N, E) vectors of any length; all-zero rows mean "no image" and do not count.
        latlon: (N, 2) latitude and longitude in degrees.
        edges_km: (K+1,) rising bin edges in km, from 0 or above; bin k holds b_k ≤ h < b_{k+1}.
        other: (M, E) vectors of a second set, for the cross-semivariogram.
        other_latlon: (M, 2) their positions.
        estimator: "matheron"; or, on the squared difference of vectors with ν = (tr C)²/tr C² effective
            dimensions (C the covariance of the embeddings), "cressie-hawkins" (Cressie and Hawkins, 1980),
            (mean d^¼)⁴ / E[(χ²_ν/ν)^¼]⁴, or "dowd" (Dowd, 1984), median(d)·ν/median(χ²_ν), its median right
            to 1.2e-4.
        max_lag_km: leave out pairs beyond; edges above it are dropped.
        max_pairs: measure at most about this many pairs, a random sample of tiles of them.
        seed: seed of the sample; 0 when left out.
        progress: show a progress bar.
        backend: a name from `available_backends()`; None picks the fastest.

    Returns:
        The semivariogram, with `sampled` and `seed` saying whether pairs were left out.

    Raises:
        ValueError: shapes that do not agree, fewer than two places with an image, bad coordinates, edges that
            do not rise from 0 or above, no pair in any bin, an unknown estimator.
    """
    v = check_matrix("embeddings", embeddings)
    p = check_latlon("latlon", latlon, rows=v.shape[0])
    check_same("device", "embeddings", v, "latlon", p)
    if (other is None) != (other_latlon is None):
        missing, given = ("other", "other_latlon") if other is None else ("other_latlon", "other")
        raise ValueError(f"{missing}: wanted together with {given}, got None")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: wanted one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    edges = _check_edges(edges_km, max_lag_km)
    if max_pairs is not None:
        check_number("max_pairs", max_pairs, low=1)
    sample = PairSample(max_pairs, 0 if seed is None else seed)

    v, p = _with_image("embeddings", v, p, 2 if other is None else 1)
    u = q = None
    if other is not None and other_latlon is not None:
        u = check_matrix("other", other, columns=v.shape[1])
        q = check_latlon("other_latlon", other_latlon, rows=u.shape[0])
        for name, tensor in (("other", u), ("other_latlon", q)):
            check_same("device", "embeddings", v, name, tensor)
        u, q = _with_image("other", u, q, 1)

    sums: BinnedSums = backends.load(backend, v).binned_sums(
        v,
        unit_vectors(p),
        u,
        None if q is None else unit_vectors(q),
        squared_chord_edges(edges).to(v.device),
        estimator == "dowd",
        sample,
        progress,
    )
    counts = sums.counts.numpy()
    if not counts.any():
        raise ValueError(
            f"edges_km: no pair lies between {edges[0]:g} and {edges[-1]:g} km; "
            f"{v.shape[0]} places were given"
        )
    return from_sums(
        edges,
        counts,
        sum_h=sums.sum_h.numpy(),
        sum_d=sums.sum_d.numpy(),
        sum_d2=sums.sum_d2.numpy(),
        duplicates=sums.duplicates,
        sampled=sums.sampled,
        seed=sample.seed if sums.sampled else None,
        gamma=None if estimator == "matheron" else _robust_gamma(estimator, sums, v, u),
        estimator=estimator,
    )


def squared_chord_edges(edges_km: Floats) -> torch.Tensor:
    """4·sin²(edge/2R): distances are compared as squared chords, without an arc per pair. (K+1,) float64."""
    half_angle = torch.from_numpy(edges_km) / (2 * EARTH_RADIUS_KM)
    beyond = half_angle > math.pi / 2  # no two places are that far apart
    return torch.where(beyond, torch.inf, 4 * torch.sin(half_angle).square())


def _check_edges(edges_km: ArrayLike, max_lag_km: float | None) -> npt.NDArray[np.float64]:
    edges = as_tensor("edges_km", np.asarray(edges_km) if isinstance(edges_km, list | tuple) else edges_km)
    values = edges.detach().cpu().double().numpy().copy()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"edges_km: wanted shape (bins+1,) with at least 2 edges, got {values.shape}")
    if not np.isfinite(values).all() or values[0] < 0 or (np.diff(values) <= 0).any():
        raise ValueError(f"edges_km: wanted finite edges in km, rising from 0 or above, got {values}")
    if max_lag_km is not None:
        check_number("max_lag_km", max_lag_km, low=values[1])
        values = values[values <= max_lag_km]
    return values


def _with_image(
    name: str, embeddings: torch.Tensor, latlon: torch.Tensor, least: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave out all-zero rows."""
    kept = has_image(embeddings)
    rows = int(kept.sum())
    if rows < least:
        raise ValueError(f"{name}: wanted at least {least} rows that are not all zero, got {rows}")
    return (embeddings, latlon) if rows == len(kept) else (embeddings[kept], latlon[kept])


def _robust_gamma(estimator: Estimator, sums: BinnedSums, v: torch.Tensor, u: torch.Tensor | None) -> Floats:
    nu = effective_dimensions(v if u is None else torch.cat([v, u]))
    pairs = torch.where(sums.counts > 0, sums.counts.double(), torch.nan)
    if estimator == "cressie-hawkins":
        # E[(χ²_ν/ν)^¼] = (2/ν)^¼ · Γ(ν/2 + ¼) / Γ(ν/2)
        expected = (2 / nu) ** 0.25 * math.exp(math.lgamma(nu / 2 + 0.25) - math.lgamma(nu / 2))
        gamma = (sums.sum_d_quarter / pairs) ** 4 / expected**4
    else:
        assert sums.histogram is not None
        gamma = _histogram_median(sums.histogram, pairs) * nu / chi2_median(nu)
    few = (sums.counts > 0) & (sums.counts < 30)
    if bool(few.any()):
        bins = few.nonzero()[:, 0].tolist()
        warnings.warn(f"{estimator} wants about 30 pairs a bin; bins {bins} hold fewer", stacklevel=3)
    values: Floats = gamma.numpy()
    return values


def effective_dimensions(embeddings: torch.Tensor) -> float:
    """ν = (tr C)²/tr C², C the covariance of the unit vectors: how many independent fields they are worth."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    covariance = torch.cov(unit.T).reshape(unit.shape[1], unit.shape[1])
    trace_of_square = covariance.square().sum()
    return float(covariance.trace() ** 2 / trace_of_square) if trace_of_square > 0 else float(unit.shape[1])


def chi2_median(nu: float) -> float:
    """Median of the χ² distribution with ν degrees of freedom, by bisection of its distribution function."""
    low, high = 0.0, 4 * nu + 4
    half_nu = torch.tensor(nu / 2, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        below = torch.special.gammainc(half_nu, torch.tensor(middle / 2, dtype=torch.float64)) < 0.5
        low, high = (middle, high) if below else (low, middle)
    return high


def _histogram_median(histogram: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Median per bin, linear inside its cell; NaN for an empty bin."""
    cumulative = histogram.cumsum(dim=1).double()
    half = (pairs / 2).nan_to_num(0.0)[:, None]
    cell = torch.searchsorted(cumulative, half).clamp(max=HISTOGRAM_CELLS - 1)
    inside = histogram.gather(1, cell).double()
    before = cumulative.gather(1, cell) - inside
    median = (cell + (half - before) / inside.clamp(min=1)) * (2 / HISTOGRAM_CELLS)
    return torch.where(pairs.isnan(), torch.nan, median[:, 0])
