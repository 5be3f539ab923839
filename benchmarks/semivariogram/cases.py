"""What is measured, and the bars it must reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from benchmarks.cases import Sizes
from semivario_kernels import EARTH_RADIUS_KM, log_edges_km

Floats = npt.NDArray[np.float64]
Places = Literal["sphere", "gallery"]

FLOOR, GSTOOLS, AUTHORS, UNPRUNED, FEW_BINS = "half product", "GSTools", "authors", "unpruned", "64 log bins"
SCIKIT_GSTAT = "scikit-gstat"
BEYOND_KM = 20_016.0  # above the distance of two antipodes, 20,015.1 km


def authors_edges_km(step_rad: float = 0.001) -> Floats:
    """Even edges of 0.001 rad from 0 to beyond π: 3,142 bins, the choice of the published reference."""
    return EARTH_RADIUS_KM * step_rad * np.arange(np.ceil(np.pi / step_rad) + 1)


@dataclass(frozen=True, eq=False)
class Case:
    """One semivariogram, made by the default backend and by a rival in turn.

    Attributes:
        name: what `--only` takes.
        what: a line for the table.
        rival: whom it is measured against.
        n: places.
        e: length of the embeddings.
        edges_km: (K+1,) bin edges.
        places: uniform on the sphere, or the official gallery's real coordinates.
        max_lag_km: handed to `binned_semivariance`.
        bar: the speed-up wanted, or against the product or fewer bins the largest multiple of their time;
            None where the size is not the bar's.
        rounds: how often the rival runs.
        repeats: runs of ours after each run of the rival.
        passes: of the authors' mask passes, how many evenly chosen ones are run; None runs all.
    """

    name: str
    what: str
    rival: str
    n: int
    e: int = 768
    edges_km: Floats = field(default_factory=lambda: log_edges_km(1.0, BEYOND_KM, 64))
    places: Places = "sphere"
    max_lag_km: float | None = None
    bar: float | None = None
    rounds: int = 7
    repeats: int = 1
    passes: int | None = None

    @property
    def is_ceiling(self) -> bool:
        """Whether the ratio is our time over the rival's, which the bar bounds from above."""
        return self.rival in (FLOOR, FEW_BINS)


@dataclass(frozen=True, eq=False)
class PeakCase:
    """One semivariogram whose peak memory is taken, by the default backend or the authors' way.

    Attributes:
        n: places.
        e: length of the embeddings.
        edges_km: (K+1,) bin edges.
        max_lag_km: handed to `binned_semivariance`.
        contender: AUTHORS, or None for the default backend.
        bar_mib: the largest extra memory wanted.
        bar_share: the largest share of the authors' extra memory at the same size.
    """

    n: int
    e: int = 768
    edges_km: Floats = field(default_factory=lambda: log_edges_km(1.0, BEYOND_KM, 64))
    max_lag_km: float | None = None
    contender: str | None = None
    bar_mib: float | None = 64.0
    bar_share: float | None = None


def _exact(n: int, e: int = 768) -> Case:
    return Case("exact", "all pairs", FLOOR, n, e, bar=1.25)


def _gstools(n: int, e: int = 768, *, rounds: int, bar: float | None = None) -> Case:
    edges_km = log_edges_km(100.0, BEYOND_KM, 32)
    what = "all pairs; E stacked fields for GSTools"
    return Case("gstools", what, GSTOOLS, n, e, edges_km, bar=bar, rounds=rounds, repeats=7)


def _scikit_gstat(n: int, e: int = 16, *, rounds: int) -> Case:
    # its differences are E × N(N − 1)/2 numbers, put together field by field: time and memory grow with E²
    what = "all pairs; aggregate of E fields for scikit-gstat"
    edges_km = log_edges_km(100.0, BEYOND_KM, 32)
    return Case("scikit-gstat", what, SCIKIT_GSTAT, n, e, edges_km, rounds=rounds, repeats=7)


def _authors(n: int, e: int = 768, *, passes: int | None) -> Case:
    what = "all pairs, even bins of 0.001 rad"
    edges_km = authors_edges_km()
    return Case("scikit-learn", what, AUTHORS, n, e, edges_km, bar=20, rounds=1, repeats=5, passes=passes)


def _pruned(
    n: int,
    e: int = 768,
    *,
    max_lag_km: float = 50.0,
    places: Places = "gallery",
    bar: float | None = None,
    rounds: int = 3,
) -> Case:
    return Case(
        "pruned",
        f"pairs within {max_lag_km:g} km",
        UNPRUNED,
        n,
        e,
        log_edges_km(max_lag_km / 100, max_lag_km, 32),
        places=places,
        max_lag_km=max_lag_km,
        bar=bar,
        rounds=rounds,
        repeats=7,
    )


def _even_bins(n: int, e: int = 768) -> Case:
    return Case("even-bins", "all pairs, even bins of 0.001 rad", FEW_BINS, n, e, authors_edges_km(), bar=1.2)


# sizes that let all of it end in a few minutes; what is smaller than the bar's case is labelled by its N
DEFAULT = [_exact(20_000), _gstools(2_000, rounds=1), _authors(10_000, passes=16), _pruned(20_000)]
DEFAULT += [_even_bins(10_000), _scikit_gstat(2_000, rounds=2)]
FULL = [_exact(20_000), _gstools(5_000, rounds=2, bar=80), _authors(10_000, passes=None)]
FULL += [_pruned(100_000, bar=20, rounds=1), _even_bins(10_000), _scikit_gstat(2_000, rounds=5)]
QUICK = [_exact(300, 24), _gstools(60, 8, rounds=1), _authors(80, 24, passes=100)]
QUICK += [
    _pruned(400, 24, max_lag_km=3_000.0, places="sphere"),
    _even_bins(300, 24),
    _scikit_gstat(60, 8, rounds=1),
]

# the authors' way comes before the row that is compared with it
AUTHORS_PEAK = PeakCase(10_000, edges_km=authors_edges_km(), contender=AUTHORS, bar_mib=None)
PEAKS = [
    AUTHORS_PEAK,
    PeakCase(10_000, edges_km=authors_edges_km(), bar_share=0.1),
    PeakCase(20_000),
    PeakCase(100_000, max_lag_km=50.0),
]
FULL_PEAKS = [*PEAKS, PeakCase(5_000), PeakCase(100_000)]
QUICK_PEAKS = [PeakCase(256, 24)]


def time_cases(sizes: Sizes) -> list[Case]:
    """Cases to be timed, in the order of the table."""
    return {"quick": QUICK, "default": DEFAULT, "full": FULL}[sizes]


def peak_cases(sizes: Sizes) -> list[PeakCase]:
    """Cases whose peak memory is taken."""
    return {"quick": QUICK_PEAKS, "default": PEAKS, "full": FULL_PEAKS}[sizes]
