"""One case: the rival and ours in turn, ours checked, and the ratio only where it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.floor import matrix_rate
from benchmarks.semivariogram.cases import AUTHORS, GSTOOLS, SCIKIT_GSTAT, UNPRUNED, Case
from benchmarks.semivariogram.contenders import Bins, float64_bins, gstools_core, our_run, rival_run
from benchmarks.semivariogram.field import Field, make_field
from semivario_kernels import available_backends

GAMMA_TOLERANCE = 1e-5  # of the largest gamma
MOVED_TOLERANCE = 1e-6  # of the pairs: those closer to an edge than float32 positions can tell


def compare(ours: Bins, oracle: Bins) -> tuple[float, int]:
    """Largest error of gamma relative to its largest value, and how many pairs are in another bin.

    Gamma is compared where both hold the same pairs. Bins that the oracle left out are not looked at.
    """
    made = oracle.counts >= 0
    moved = int(np.abs(ours.counts - oracle.counts)[made].sum())
    same = made & (oracle.counts > 0) & (ours.counts == oracle.counts)
    if not same.any():
        return float("nan"), moved
    error = np.abs(ours.gamma - oracle.gamma)[same].max() / np.nanmax(np.abs(oracle.gamma))
    return float(error), moved


def measure_case(case: Case, *, on_round: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """Rows of the table for one case: plain numbers, the rival's and ours.

    A contender that fails keeps its row, with the reason under "failure" and no times.
    """
    backend = available_backends()[0]
    rate = matrix_rate(torch.device("cpu"), torch.float32)
    rival = case.rival
    note = ""
    if rival == AUTHORS and case.passes is not None:
        bins = len(case.edges_km) - 1
        note = f"time scaled up from {case.passes} of {bins:,} mask passes, whose bins are compared"
    seconds: dict[str, list[float]] = {rival: [], backend: []}
    failures: dict[str, str] = {}
    outcomes: dict[str, Bins | None] = {}
    error, moved, right = None, None, None
    at = rival  # who is to blame
    try:
        field = make_field(case.n, case.e, case.places)
        runs = {rival: rival_run(case, field), backend: our_run(case, field)}
        if rival == GSTOOLS:
            core = gstools_core()
            note = f"its {'Rust core' if core else 'Cython core'}, {torch.get_num_threads()} threads"
        # a warm-up costs the slow rivals as much as a measurement; what they compile, they have compiled
        for at in [backend] if rival in (GSTOOLS, SCIKIT_GSTAT, AUTHORS, UNPRUNED) else [rival, backend]:
            runs[at]()
        for done in range(case.rounds):
            for at, times in ((rival, 1), (backend, case.repeats)):
                for _ in range(times):
                    outcomes[at], took = runs[at]()
                    seconds[at].append(took)
            on_round(done + 1, case.rounds)
        error, moved, right = _check(case, field, outcomes[backend], outcomes[rival])
    except Exception as reason:  # a peer that is not installed or runs out of memory spoils its case only
        failures[at] = f"{type(reason).__name__}: {reason}".splitlines()[0]

    counted = outcomes.get(backend)
    # the products of the pairs that come into a bin, without which no semivariogram of them is made
    floor_s = None if counted is None else 2 * case.e * int(counted.counts.sum()) / rate
    medians = {name: float(np.median(times)) for name, times in seconds.items() if times}
    ratio = None
    if right and len(medians) == 2:
        ours, theirs = medians[backend], medians[rival]
        ratio = ours / theirs if case.is_ceiling else theirs / ours
    bar = case.bar
    if rival == GSTOOLS and "Rust" not in note:
        bar = None  # the bar is against its faster core
    rows = []
    for name in seconds:
        is_ours = name == backend
        rows.append(
            {
                "case": case.name,
                "what": case.what,
                "n": case.n,
                "e": case.e,
                "bins": len(case.edges_km) - 1,
                "places": case.places,
                "max_lag_km": case.max_lag_km,
                "contender": name,
                "role": "ours" if is_ours else "rival",
                "note": "" if is_ours else note,
                "seconds": seconds[name],
                "median_s": medians.get(name),
                "quartiles_s": np.quantile(seconds[name], [0.25, 0.75]).tolist() if seconds[name] else None,
                "failure": failures.get(name),
                "floor_s": floor_s,
                "to_floor": medians[name] / floor_s if floor_s and right and name in medians else None,
                "error": error if is_ours else None,
                "error_allowed": GAMMA_TOLERANCE if is_ours else None,
                "moved_pairs": moved if is_ours else None,
                "right": right if is_ours else None,
                "against": rival if is_ours else None,
                "ratio": ratio if is_ours else None,
                "is_ceiling": case.is_ceiling,
                "bar": bar if is_ours else None,
                "met": _met(ratio, bar, case.is_ceiling) if is_ours and bar is not None else None,
            }
        )
    return rows


def _check(case: Case, field: Field, ours: Bins | None, theirs: Bins | None) -> tuple[float, int, bool]:
    """Error and moved pairs of ours against the rival, or against float64 where that has no semivariogram."""
    assert ours is not None
    oracle = float64_bins(field, case.edges_km) if theirs is None else theirs
    error, moved = compare(ours, oracle)
    # both are exact in the unpruned run's own arithmetic: not one pair may move
    allowed = 0 if case.rival == UNPRUNED else MOVED_TOLERANCE * oracle.counts.clip(0).sum()
    return error, moved, bool(error <= GAMMA_TOLERANCE and moved <= allowed)


def _met(ratio: float | None, bar: float, is_ceiling: bool) -> bool:
    if ratio is None:
        return False
    return ratio <= bar if is_ceiling else ratio >= bar
