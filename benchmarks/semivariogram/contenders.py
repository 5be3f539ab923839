"""Who runs in a case: the default backend, its rival, and the oracle where the rival is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from benchmarks.semivariogram.cases import (
    AUTHORS,
    BEYOND_KM,
    FEW_BINS,
    FLOOR,
    GSTOOLS,
    SCIKIT_GSTAT,
    UNPRUNED,
    Case,
)
from benchmarks.semivariogram.field import Field
from semivario_kernels import EARTH_RADIUS_KM, binned_semivariance, log_edges_km
from semivario_kernels.geometry import unit_vectors

FLOOR_ROWS = 1024


@dataclass(frozen=True)
class Bins:
    """Counts (K,) and gamma (K,) of a semivariogram; a count of -1 says that the bin was left out."""

    counts: np.ndarray
    gamma: np.ndarray


# one run: what it made, None where that is no semivariogram, and its seconds
Run = Callable[[], tuple[Bins | None, float]]


def our_run(case: Case, field: Field, edges_km: np.ndarray | None = None) -> Run:
    """`binned_semivariance` by the default backend; with other edges, without `max_lag_km`."""

    def run() -> tuple[Bins, float]:
        begin = perf_counter()
        empirical = binned_semivariance(
            field.embeddings,
            field.latlon,
            edges_km=case.edges_km if edges_km is None else edges_km,
            max_lag_km=case.max_lag_km if edges_km is None else None,
        )
        return Bins(empirical.counts, empirical.gamma), perf_counter() - begin

    return run


def half_product_run(field: Field) -> Run:
    """V·Vᵀ of the upper triangle, in blocks of rows, by torch.mm into memory that is already there."""
    v = torch.nn.functional.normalize(field.embeddings, dim=1)
    n = len(v)
    memory = v.new_empty(FLOOR_ROWS * n)

    def run() -> tuple[None, float]:
        begin = perf_counter()
        for start in range(0, n, FLOOR_ROWS):
            rows = v[start : start + FLOOR_ROWS]
            pairs = memory[: len(rows) * (n - start)].view(len(rows), n - start)
            torch.mm(rows, v[start:].T, out=pairs)
        return None, perf_counter() - begin

    return run


def gstools_core() -> bool:
    """Whether GSTools runs its Rust core."""
    from gstools import config

    return bool(config.USE_GSTOOLS_CORE and config._GSTOOLS_CORE_AVAIL)


def gstools_run(case: Case, field: Field) -> Run:
    """GSTools' `vario_estimate` with one field per dimension, on as many threads as torch has."""
    import gstools

    gstools.config.NUM_THREADS = torch.get_num_threads()
    fields = field.unit_vectors().T.copy()
    latitude, longitude = field.latlon.numpy().T.copy()

    def run() -> tuple[Bins, float]:
        begin = perf_counter()
        _, mean, counts = gstools.vario_estimate(
            (latitude, longitude),
            fields,
            case.edges_km / EARTH_RADIUS_KM,  # a new array: with a geo_scale it would be changed
            latlon=True,
            return_counts=True,
        )
        seconds = perf_counter() - begin
        pairs = np.rint(counts / case.e).astype(np.int64)  # it counts every field
        return Bins(pairs, np.where(pairs > 0, case.e * mean, np.nan)), seconds

    return run


def scikit_gstat_run(case: Case, field: Field) -> Run:
    """scikit-gstat's experimental variogram of the E fields together, without a fit.

    It measures Euclidean distances: on unit vectors these are chords, and the edges become chords too.
    """
    import skgstat

    fields, places = field.unit_vectors(), unit_vectors(field.latlon).numpy()
    turns = case.edges_km / EARTH_RADIUS_KM
    chords = np.where(turns < np.pi, 2 * np.sin(turns / 2), turns)  # beyond the antipode any above 2 will do

    def experimental(places: np.ndarray, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says how many dimensions the fields have
            variogram = skgstat.Variogram(
                places, fields, multivariate="aggregate", bin_func=chords, fit_method=None
            )
            # its first class holds what lies below the first edge
            return variogram.bin_count[1:], variogram.experimental[1:]

    experimental(places[:50], fields[:50])  # Numba compiles

    def run() -> tuple[Bins, float]:
        begin = perf_counter()
        counts, gamma = experimental(places, fields)
        seconds = perf_counter() - begin
        return Bins(counts, np.where(counts > 0, gamma, np.nan)), seconds

    return run


def authors_run(case: Case, field: Field) -> Run:
    """The published reference's way."""
    from benchmarks.semivariogram.authors_way import masked_semivariogram

    embeddings, latlon = field.embeddings.numpy(), field.latlon.numpy()
    bins = len(case.edges_km) - 1
    passes = None if case.passes is None else np.linspace(0, bins - 1, case.passes).astype(int)

    def run() -> tuple[Bins, float]:
        edges_rad = case.edges_km / EARTH_RADIUS_KM
        counts, gamma, seconds = masked_semivariogram(embeddings, latlon, edges_rad, passes)
        return Bins(counts, gamma), seconds

    return run


def unpruned_run(case: Case, field: Field) -> Run:
    """The same bins and more of them up to the antipode, so that no pair can be left out."""
    beyond = log_edges_km(case.edges_km[-1], BEYOND_KM, 33)[2:]
    run = our_run(case, field, np.concatenate([case.edges_km, beyond]))
    bins = len(case.edges_km) - 1

    def within() -> tuple[Bins, float]:
        made, seconds = run()
        return Bins(made.counts[:bins], made.gamma[:bins]), seconds

    return within


def few_bins_run(case: Case, field: Field) -> Run:
    """The same pairs in 64 logarithmic bins."""
    run = our_run(case, field, log_edges_km(1.0, BEYOND_KM, 64))
    return lambda: (None, run()[1])


def rival_run(case: Case, field: Field) -> Run:
    """The run of a case's rival."""
    makers: dict[str, Callable[[], Run]] = {
        FLOOR: lambda: half_product_run(field),
        GSTOOLS: lambda: gstools_run(case, field),
        SCIKIT_GSTAT: lambda: scikit_gstat_run(case, field),
        AUTHORS: lambda: authors_run(case, field),
        UNPRUNED: lambda: unpruned_run(case, field),
        FEW_BINS: lambda: few_bins_run(case, field),
    }
    return makers[case.rival]()


def float64_bins(field: Field, edges_km: np.ndarray, *, rows: int = 256) -> Bins:
    """The oracle: all pairs i < j in float64, distances by the haversine formula, without any of our code."""
    v = torch.from_numpy(field.unit_vectors())
    latitude, longitude = torch.deg2rad(field.latlon).T.contiguous()
    edges = torch.from_numpy(edges_km)
    bins = len(edges_km) - 1
    # the first cell is for what lies below the first edge, the last for what lies beyond the last
    counts = torch.zeros(bins + 2, dtype=torch.int64)
    sums = torch.zeros(bins + 2, dtype=torch.float64)
    for start in range(0, len(v), rows):
        block, columns = slice(start, start + rows), slice(start + 1, None)
        a = torch.sub(longitude[block, None], longitude[columns]).div_(2).sin_().square_()
        a *= latitude[block, None].cos()
        a *= latitude[columns].cos()
        a += torch.sub(latitude[block, None], latitude[columns]).div_(2).sin_().square_()
        h_km = a.clamp_(0, 1).sqrt_().asin_().mul_(2 * EARTH_RADIUS_KM)
        # entry (r, c) is the pair of places start + r and start + 1 + c: below the diagonal it is no new one
        cell = torch.bucketize(h_km, edges, right=True).triu_().flatten()
        d = torch.mm(v[block], v[columns].T).neg_().add_(1).flatten()
        counts += torch.bincount(cell, minlength=bins + 2)
        sums += torch.bincount(cell, weights=d, minlength=bins + 2)
    counts, sums = counts[1:-1], sums[1:-1]
    gamma = torch.where(counts > 0, sums / counts, torch.nan)
    return Bins(counts.numpy(), gamma.numpy())
