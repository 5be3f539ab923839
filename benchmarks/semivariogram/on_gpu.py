"""The exact semivariogram of many places on a GPU, against half the product at its matrix rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.floor import matrix_rate
from benchmarks.semivariogram.cases import BEYOND_KM
from benchmarks.semivariogram.contenders import Bins, float64_bins
from benchmarks.semivariogram.field import Field, make_field
from benchmarks.semivariogram.measure import GAMMA_TOLERANCE, MOVED_TOLERANCE, compare
from benchmarks.table import machine_line, milliseconds, table, verdict
from semivario_kernels import available_backends, binned_semivariance, log_edges_km

EDGES_KM = log_edges_km(1.0, BEYOND_KM, 64)
HEAD = ["N × E", "dtype", "contender", "median (all) ms", "bar", "× floor", "error (allowed), moved pairs"]


@dataclass(frozen=True)
class GpuCase:
    """All pairs of `n` places in 64 logarithmic bins.

    Attributes:
        name: what `--only` takes.
        n: places.
        e: length of the embeddings.
        dtype: of the embeddings.
        rounds: timed runs.
        checked: compare with all pairs in float64, on the CPU.
        bar_s: the longest time wanted, in seconds.
    """

    name: str
    n: int
    e: int = 768
    dtype: torch.dtype = torch.bfloat16
    rounds: int = 3
    checked: bool = False
    bar_s: float | None = None


CASES = [GpuCase("exact-10k", 10_000, checked=True), GpuCase("exact-1m", 1_000_000, bar_s=3.0)]


def measure_on_gpu(
    cases: list[GpuCase], device: torch.device, *, on_case: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of the table: the default backend's times, which end with the result on the host."""
    rows = []
    for case in cases:
        on_case(f"{case.name} {case.n:,} places")
        row: dict[str, Any] = {
            "case": case.name,
            "n": case.n,
            "e": case.e,
            "dtype": str(case.dtype).removeprefix("torch."),
            "contender": available_backends(device)[0],
            "role": "ours",
            "bars": [],
            "failure": None,
            **dict.fromkeys(("median_s", "floor_s", "to_floor", "error", "moved_pairs", "right")),
        }
        rows.append(row)
        try:
            _measure(case, device, row)
        except Exception as error:  # a case that runs out of memory spoils its row only
            row["failure"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return rows


def _measure(case: GpuCase, device: torch.device, row: dict[str, Any]) -> None:
    made = make_field(case.n, case.e, device=device)
    field = Field(made.embeddings.to(case.dtype), made.latlon)
    del made
    seconds = []
    for _ in range(1 + case.rounds):
        begin = perf_counter()
        empirical = binned_semivariance(field.embeddings, field.latlon, edges_km=EDGES_KM)
        seconds.append(perf_counter() - begin)
    row["seconds"] = seconds[1:]
    row["median_s"] = float(np.median(seconds[1:]))
    row["floor_s"] = (
        case.n * (case.n - 1) * case.e / matrix_rate(device, case.dtype)
    )  # 2E a pair, half of them
    row["to_floor"] = row["median_s"] / row["floor_s"]
    if case.bar_s is not None:
        met = row["median_s"] <= case.bar_s
        row["bars"] = [{"against": "seconds", "wanted": case.bar_s, "got": row["median_s"], "met": met}]
    if case.checked:
        on_host = Field(field.embeddings.float().cpu(), field.latlon.cpu())
        oracle = float64_bins(on_host, EDGES_KM)
        row["error"], row["moved_pairs"] = compare(Bins(empirical.counts, empirical.gamma), oracle)
        allowed = MOVED_TOLERANCE * oracle.counts.sum()
        row["right"] = bool(row["error"] <= GAMMA_TOLERANCE and row["moved_pairs"] <= allowed)


def markdown(result: dict[str, Any]) -> str:
    """One table under a line on the machine."""
    bars = [bar["met"] for row in result["times"] for bar in row["bars"]]
    lines = [f"# Semivariogram: {result['machine']['processor']}, {result['date']}", ""]
    lines += [machine_line(result["machine"], bars), ""]
    lines += [
        "All pairs in 64 logarithmic bins by the default backend, the result on the host. `floor` is half "
        "the product at the rate of square products, taken in the same run.",
        "",
        *table(HEAD, result["times"], _cells),
        "",
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    head = [f"{row['n']:,} × {row['e']}", row["dtype"], row["contender"]]
    if row["failure"]:
        return [*head, row["failure"].replace("|", "\\|"), "–", "–", "–"]
    every = ", ".join(milliseconds(seconds) for seconds in row["seconds"])
    bar = "–"
    for one in row["bars"]:
        bar = f"≤ {one['wanted']:g} s: {verdict(one['met'])}"
    error = "not checked"
    if row["right"] is not None:
        wrong = "" if row["right"] else " **WRONG**"
        error = f"{row['error']:.1e} ({GAMMA_TOLERANCE:.0e}), {row['moved_pairs']}{wrong}"
    return [*head, f"{milliseconds(row['median_s'])} ({every})", bar, f"{row['to_floor']:.2f}", error]
