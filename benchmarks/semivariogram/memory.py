"""Peak memory of one semivariogram, each taken in a process of its own, see `benchmarks.fresh_process`.

The baseline makes the same field and runs the contender on 64 places only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.fresh_process import answer_of, beyond, peak_mib, serve
from benchmarks.semivariogram.cases import AUTHORS, Case, PeakCase
from benchmarks.semivariogram.contenders import authors_run, our_run
from benchmarks.semivariogram.field import make_field
from semivario_kernels import available_backends

AUTHORS_PASSES = 3  # one mask is freed before the next: more of them need no more memory


def measure_peaks(cases: list[PeakCase], *, on_case: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of the memory table: plain numbers, one dict per case."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        on_case(f"memory {case.n:,} places")
        row: dict[str, Any] = {
            "n": case.n,
            "e": case.e,
            "bins": len(case.edges_km) - 1,
            "max_lag_km": case.max_lag_km,
            "contender": case.contender or available_backends()[0],
            "role": "rival" if case.contender else "ours",
            "bar_mib": case.bar_mib,
            "bar_share": case.bar_share,
            "share": None,
            "met": None if case.contender else False,
            "failure": None,
        }
        rows.append(row)
        try:
            baselines = [_in_fresh_process(case, runs=False) for _ in range(2)]
            peak = _in_fresh_process(case, runs=True)
        except RuntimeError as error:
            row["failure"] = str(error)
            continue
        row |= beyond(baselines, peak)
        theirs = [r for r in rows if r["role"] == "rival" and r["n"] == case.n and r["failure"] is None]
        if case.bar_share is not None and theirs:
            row["share"] = row["extra_mib"] / theirs[-1]["extra_mib"]
        if row["role"] == "ours":
            row["met"] = (case.bar_mib is None or row["extra_mib"] <= case.bar_mib) and (
                case.bar_share is None or (row["share"] is not None and row["share"] <= case.bar_share)
            )
    return rows


def _in_fresh_process(case: PeakCase, *, runs: bool) -> float:
    request = {
        "n": case.n,
        "e": case.e,
        "edges_km": case.edges_km.tolist(),
        "max_lag_km": case.max_lag_km,
        "contender": case.contender,
        "runs": runs,
    }
    return float(answer_of("benchmarks.semivariogram.memory", request))


def _answer(request: dict[str, Any]) -> float:
    """Run what `request` asks for and return the peak MiB of this process."""
    make_run = authors_run if request["contender"] == AUTHORS else our_run

    def case_of(n: int, edges_km: list[float], max_lag_km: float | None) -> Case:
        edges = np.array(edges_km)
        return Case("", "", "", n, request["e"], edges, max_lag_km=max_lag_km, passes=AUTHORS_PASSES)

    # the code it loads and the threads it starts
    small = case_of(64, [0.0, 30_000.0], None)
    make_run(small, make_field(small.n, small.e))()
    case = case_of(request["n"], request["edges_km"], request["max_lag_km"])
    field = make_field(case.n, case.e)
    if request["runs"]:
        make_run(case, field)()
    return peak_mib(torch.device("cpu"))


if __name__ == "__main__":
    serve(_answer)
