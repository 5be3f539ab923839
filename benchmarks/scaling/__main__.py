"""`python -m benchmarks.scaling`: one process against two, each on a core of its own, as JSON and a table.

Cases are the loss over a group, forward and backward, in both schemes, and the exact semivariogram. Rounds
are interleaved: while one process measures alone, the other waits. Two processes of one machine share its
memory and its caches, so this says what the exchange costs, not what a network does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from benchmarks.machine import describe, processor_name
from benchmarks.scaling.measure import POLICY, RANKS, measure_rank

BAR = 1.7
LOSS = {"n": 4096, "m": 16_384, "d": 256, "e": 256}
PLACES = {"n": 25_000, "e": 256, "bins": 32}
QUICK_LOSS = {"n": 64, "m": 256, "d": 16, "e": 16}
QUICK_PLACES = {"n": 500, "e": 16, "bins": 8}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit status is 1 where the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of every case (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < RANKS:
        parser.error(f"wanted {RANKS} cores, got {len(cores)}")
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": describe(torch.device("cpu")) | {"threads": 1},
        "loss": QUICK_LOSS if options.quick else LOSS,
        "places": QUICK_PLACES if options.quick else PLACES,
        "bar": BAR,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments_of_ranks = (Path(folder), cores[:RANKS], options.rounds, record["loss"], record["places"])
        mp.spawn(measure_rank, arguments_of_ranks, nprocs=RANKS)
        record["cases"] = json.loads((Path(folder) / "cases.json").read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.out / f"scaling-{record['date']}"
    name.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    text = markdown(record)
    name.with_suffix(".md").write_text(text)
    print(text)
    return 0 if options.quick or all(case["speedup"] >= BAR for case in record["cases"]) else 1


def markdown(record: dict[str, Any]) -> str:
    """The table of a record."""
    loss, places, machine = record["loss"], record["places"], record["machine"]
    lines = [
        f"# One process and two: {processor_name(torch.device('cpu'))}, {record['date']}",
        "",
        f"One core and one thread a process, float32, gloo, torch {machine['versions']['torch']}, commit "
        f"{machine['commit'][:12]}; medians of interleaved rounds. Loss: {loss['n']:,} × {loss['m']:,} in "
        f"all, D = {loss['d']}, E = {loss['e']}, policy `{POLICY.kind}`, mean, forward and backward. "
        f"Semivariogram: {places['n']:,} places, E = {places['e']}, {places['bins']} bins, all pairs.",
        "",
        f"| case | one process s | two processes s | speed-up (bar {record['bar']}) | one process without a "
        "group s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in record["cases"]:
        one, two, alone = (statistics.median(case[name]) for name in ("one", "two", "without_group"))
        lines.append(f"| {case['name']} | {one:.3f} | {two:.3f} | {case['speedup']:.2f} | {alone:.3f} |")
    lines += [
        "",
        "Without a group the loss makes its gradient in the forward pass and multiplies less.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
