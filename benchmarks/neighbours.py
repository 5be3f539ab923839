"""`python -m benchmarks.neighbours`: nearest places, and an epoch's batches of them: time, memory, exactness.

Places lie in clusters, as photos do, with some at the very same spot. Every size is measured in a process of
its own; memory is the peak of the resident set beyond that process's peak after it found the neighbours of
1,000 places. The neighbours are compared with a float64 brute force by haversine distances, in chunks,
after the clock has stopped: all rows of the small case, random ones of the large.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics.pairwise import haversine_distances

from benchmarks.fresh_process import output_of, peak_mib
from benchmarks.machine import describe
from benchmarks.table import machine_line, table, verdict
from geoclip.sampling import EpochBatchSampler, geographic_neighbours
from semivario_kernels import EARTH_RADIUS_KM

NEIGHBOURS, BATCH_SIZE = 128, 128
ROUNDING_KM = 1e-8  # haversine in float64, near and far
HEAD = ["places", "seconds", "bar", "extra MiB", "bar", "rows compared", "largest difference, km"]
HEAD += ["an epoch's batches, s", "ms a batch"]


class Case(NamedTuple):
    places: int
    compared: int
    bar_s: float | None = None
    bar_mib: float | None = None


CASES = [Case(35_500, 35_500, 10, 200), Case(1_000_000, 500, 180, 2048)]
QUICK = [Case(3000, 3000)]
WARM_UP = 1000  # places


def make_places(n: int) -> np.ndarray:
    """(n, 2) degrees in 500 clusters of some 30 km, one in a hundred at the spot of another."""
    rng = np.random.default_rng(0)
    centres = np.column_stack(
        [np.degrees(np.arcsin(rng.uniform(-0.9, 0.9, 500))), rng.uniform(-180, 180, 500)]
    )
    latlon = centres[rng.integers(500, size=n)] + rng.normal(scale=0.3, size=(n, 2))
    latlon[rng.integers(n, size=n // 100)] = latlon[rng.integers(n, size=n // 100)]
    return latlon


def largest_difference_km(latlon: np.ndarray, nearest: np.ndarray, rows: np.ndarray) -> float:
    """Between our distances, rank by rank, and those of a brute force over all places."""
    radians = np.radians(latlon)
    worst = 0.0
    for some in np.array_split(rows, max(1, len(rows) * len(latlon) // 2**24)):
        km = haversine_distances(radians[some], radians) * EARTH_RADIUS_KM
        km[np.arange(len(some)), some] = np.inf
        wanted = np.sort(np.partition(km, nearest.shape[1], axis=1)[:, : nearest.shape[1]], axis=1)
        ours = np.take_along_axis(km, nearest[some].astype(np.int64), axis=1)
        worst = max(worst, float(np.abs(ours - wanted).max()))
        if any(len(set(row)) < nearest.shape[1] for row in nearest[some].tolist()):
            return float("inf")  # a neighbour twice
    return worst


def measure(case: Case, threads: int) -> dict[str, Any]:
    """One row of the table, in this process."""
    geographic_neighbours(make_places(WARM_UP), NEIGHBOURS, workers=threads)
    baseline_mib = peak_mib(torch.device("cpu"))
    latlon = make_places(case.places)
    begin = time.perf_counter()
    nearest = geographic_neighbours(latlon, NEIGHBOURS, workers=threads)
    seconds = time.perf_counter() - begin
    extra_mib = peak_mib(torch.device("cpu")) - baseline_mib
    begin = time.perf_counter()
    batches = EpochBatchSampler(case.places, BATCH_SIZE, neighbours=nearest).epoch_batches()
    epoch_s = time.perf_counter() - begin
    compared = np.random.default_rng(1).permutation(case.places)[: case.compared]
    difference = largest_difference_km(latlon, nearest, compared)
    return {
        "places": case.places,
        "seconds": seconds,
        "extra_mib": extra_mib,
        "compared": case.compared,
        "difference_km": difference,
        "epoch_s": epoch_s,
        "batch_ms": epoch_s / len(batches) * 1e3,
    }


def in_fresh_process(case: Case, threads: int) -> dict[str, Any]:
    arguments = ("-m", "benchmarks.neighbours", "--one", json.dumps(case), "--threads", str(threads))
    row: dict[str, Any] = json.loads(output_of(*arguments))
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status is 1 where a neighbour is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that everything runs")
    parser.add_argument(
        "--places", type=int, nargs="+", help="cases by their number of places (default: all)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: torch's)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(Case(*options.one), options.threads)))
        return 0
    cases = QUICK if options.quick else CASES
    if options.places:
        cases = [case for case in cases if case.places in options.places]
    torch.set_num_threads(options.threads)
    machine = describe(torch.device("cpu"))
    rows = []
    for case in cases:
        print(f"{case.places:,} places …", file=sys.stderr)
        row = in_fresh_process(case, options.threads)
        row["bar_s"], row["bar_mib"] = case.bar_s, case.bar_mib
        row["right"] = row["difference_km"] <= ROUNDING_KM
        rows.append(row)
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "rows": rows}
    suffix = "-quick" if options.quick else "".join(f"-{n}" for n in options.places or ())
    file = options.out / f"neighbours-{result['date']}{suffix}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    file.with_suffix(".md").write_text(text)
    print(text)
    return 0 if all(row["right"] for row in rows) else 1


def markdown(result: dict[str, Any]) -> str:
    """The table under a line on the machine and one on the bars."""
    bars = [
        row[value] <= row[bar]
        for row in result["rows"]
        for value, bar in (("seconds", "bar_s"), ("extra_mib", "bar_mib"))
        if row[bar] is not None
    ]
    return "\n".join(
        [
            f"# Nearest places: {result['machine']['processor']}, {result['date']}",
            "",
            machine_line(result["machine"], bars),
            "",
            f"The {NEIGHBOURS} nearest others of every place, compared with a float64 brute force, and an "
            f"epoch of batches of {BATCH_SIZE} drawn from them. Memory is the peak of the resident set "
            f"beyond that of the same process after {WARM_UP:,} places.",
            "",
            *table(HEAD, result["rows"], _cells),
            "",
        ]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    def bar(value: str, wanted: str) -> str:
        if row[wanted] is None:
            return "–"
        return f"≤ {row[wanted]:g}: {verdict(row[value] <= row[wanted])}"

    return [
        f"{row['places']:,}",
        f"{row['seconds']:.3g}",
        bar("seconds", "bar_s"),
        f"{row['extra_mib']:.0f}",
        bar("extra_mib", "bar_mib"),
        f"{row['compared']:,}",
        f"{row['difference_km']:.0e}" + ("" if row["right"] else " **WRONG**"),
        f"{row['epoch_s']:.3g}",
        f"{row['batch_ms']:.2g}",
    ]


if __name__ == "__main__":
    sys.exit(main())
