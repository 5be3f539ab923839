"""Binned semivariance of embeddings on the sphere: the empirical semivariogram."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels import backends
from semivario_kernels.binned_run import BinnedRun, PairSample
from semivario_kernels.binned_sums import BinnedRequest, affordable_cells
from semivario_kernels.checks import (
    ArrayLike,
    as_tensor,
    check_latlon,
    check_matrix,
    check_number,
    check_same,
    check_whole,
)
from semivario_kernels.empirical_variogram import EmpiricalVariogram, from_run
from semivario_kernels.geometry import EARTH_RADIUS_KM
from semivario_kernels.ranks import Ranks
from semivario_kernels.robust_estimators import robust_gamma
from semivario_kernels.sorted_places import sorted_places

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Floats = npt.NDArray[np.float64]
Estimator = Literal["matheron", "cressie-hawkins", "dowd"]
ESTIMATORS = ("matheron", "cressie-hawkins", "dowd")


class NoPairError(ValueError):
    """No pair of places lies in any bin."""


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
    checkpoint: str | Path | None = None,
    group: ProcessGroup | None = None,
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
            to half a cell of a histogram: 1.2e-4 with up to 126 bins, 2e-3 with 4,000.
        max_lag_km: drop the edges above, km; pairs beyond the last edge are not multiplied.
        max_pairs: multiply at most about this many pairs: those at short lags as far as they go, longer ones
            within random subsets of the places, each band of lags its own; every pair of a bin is as likely
            as any other.
        seed: seed of the sample; 0 when left out.
        progress: show a progress bar.
        checkpoint: file that keeps the sums every few seconds; a call with the same arguments goes on from
            it, with any number of ranks. It is removed at the end.
        group: a torch.distributed group whose ranks share the pairs; all call with the same arguments, best
            with embeddings that are mapped into memory, and get the same result. It is that of one process
            bit for bit where sums are whole numbers: of embeddings shorter than float64 on the CPU, but for
            "cressie-hawkins". The first rank shows progress and keeps the checkpoint.
        backend: a name from `available_backends()`; None picks the fastest.

    Returns:
        The semivariogram, with `sampled` and `seed` saying whether pairs were left out.

    Raises:
        ValueError: shapes that do not agree, different devices, fewer than two places with an image (one, of
            either set, with `other`), bad coordinates, edges that do not rise from 0 or above, `max_lag_km`
            below the second edge, `max_pairs` below 1, embeddings that are not finite, no pair in any bin, an
            unknown estimator, a checkpoint of another run, ranks with other arguments, a backend that is
            unknown or cannot run.
        OSError: the checkpoint cannot be written.
        ImportError: `progress`, and rich is not installed; names the extra that brings it.
    """
    v = check_matrix("embeddings", embeddings).detach()
    p = check_latlon("latlon", latlon, rows=v.shape[0]).detach()
    check_same("device", "embeddings", v, "latlon", p)
    if (other is None) != (other_latlon is None):
        missing, given = ("other", "other_latlon") if other is None else ("other_latlon", "other")
        raise ValueError(f"{missing}: wanted together with {given}, got None")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: wanted one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    edges = _check_edges(edges_km, max_lag_km)
    if max_pairs is not None:
        check_number("max_pairs", max_pairs, low=1)
    sample = PairSample(max_pairs, 0 if seed is None else check_whole("seed", seed, low=0))
    u = q = None
    if other is not None and other_latlon is not None:
        u = check_matrix("other", other, columns=v.shape[1]).detach()
        q = check_latlon("other_latlon", other_latlon, rows=u.shape[0]).detach()
        for name, tensor in (("other", u), ("other_latlon", q)):
            check_same("device", "embeddings", v, name, tensor)

    sides = [("embeddings", v, p)]
    if u is not None and q is not None:
        sides.append(("other", u, q))
    ranks = Ranks(group, v.device)
    chosen = backends.load(backend, v)
    fingerprint = ""
    if checkpoint is not None or group is not None:
        fingerprint = _fingerprint(chosen.__name__, estimator, sample, edges, v, p, u, q)
    ranks.same_everywhere("group", fingerprint)
    places, blocks = sorted_places(sides, len(edges) - 1, ranks)
    request = BinnedRequest(
        squared_chord_edges(edges),
        blocks,
        wants_quarters=estimator == "cressie-hawkins",
        histogram_cells=affordable_cells(len(edges) - 1) if estimator == "dowd" else 0,
    )
    make_binning = partial(chosen.binning, [side_embeddings for _, side_embeddings, _ in sides])
    run = BinnedRun(places, edges, request, make_binning, sample, ranks)
    state = run.run(progress, None if checkpoint is None else Path(checkpoint), fingerprint)
    measured = from_run(edges, state, estimator, sample.seed if run.sampled else None)
    if not measured.counts.any():
        raise NoPairError(
            f"edges_km: no pair lies between {edges[0]:g} and {edges[-1]:g} km; "
            f"{len(places[0])} places were given"
        )
    if estimator != "matheron":
        measured = replace(measured, gamma=robust_gamma(estimator, state.total, places))
    return measured


def _fingerprint(*parts: object) -> str:
    """Names the run: options whole, positions whole, embeddings by shape and by 64 of their rows."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor) and part.shape[1] > 2:
            rows = torch.arange(64, device="cpu") * (len(part) - 1) // 63
            digest.update(repr((part.dtype, tuple(part.shape))).encode())
            part = part[rows.to(part.device)].double()
        if isinstance(part, torch.Tensor):
            part = part.cpu().double().numpy()
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def squared_chord_edges(edges_km: Floats) -> torch.Tensor:
    """4·sin²(edge/2R): distances are compared as squared chords, without an arc per pair. (K+1,) float64."""
    half_angle = torch.from_numpy(edges_km) / (2 * EARTH_RADIUS_KM)
    beyond = half_angle > math.pi / 2  # no two places are that far apart
    return torch.where(beyond, torch.inf, 4 * torch.sin(half_angle).square())


def _check_edges(edges_km: ArrayLike, max_lag_km: float | None) -> npt.NDArray[np.float64]:
    if isinstance(edges_km, list | tuple):
        try:
            edges_km = np.asarray(edges_km)
        except ValueError as error:  # lists of different lengths
            raise ValueError(f"edges_km: wanted numbers, got {edges_km!r}") from error
    edges = as_tensor("edges_km", edges_km)
    values = edges.detach().cpu().double().numpy().copy()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"edges_km: wanted shape (bins+1,) with at least 2 edges, got {values.shape}")
    if not np.isfinite(values).all() or values[0] < 0 or (np.diff(values) <= 0).any():
        raise ValueError(f"edges_km: wanted finite edges in km, rising from 0 or above, got {values}")
    if max_lag_km is not None:
        check_number("max_lag_km", max_lag_km, low=values[1])
        values = values[values <= max_lag_km]
    return values
