"""`python -m benchmarks`: time and memory of the loss, written as JSON and as a Markdown table."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.cases import Sizes, memory_cases, time_cases
from benchmarks.machine import describe
from benchmarks.measure import measure_case
from benchmarks.memory import measure_memory
from benchmarks.problem import LOGIT_SCALE, VARIOGRAM
from benchmarks.progress import Progress
from benchmarks.table import markdown

MEMORY = "memory"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; the exit status is 1 where one of our backends fails or is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases by name; 'memory' for peak memory")
    parser.add_argument("--full", action="store_true", help="more cases")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="timed rounds of a case; 3 rounds at least (default: 20)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    options = parser.parse_args(arguments)
    try:
        device = torch.device(options.device)
    except RuntimeError:
        parser.error(f"--device: wanted cpu or cuda, got {options.device!r}")
    if device.type not in ("cpu", "cuda"):
        parser.error(f"--device: wanted cpu or cuda, got {options.device!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: cuda was asked for, but torch sees no GPU")
    sizes: Sizes = "quick" if options.quick else "full" if options.full else "default"
    cases, peaks = time_cases(device, sizes), memory_cases(device, sizes)
    names = [*dict.fromkeys(case.name for case in cases), MEMORY]
    only = options.only or names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: wanted some of {', '.join(names)}, got {', '.join(unknown)}")
    cases = [case for case in cases if case.name in only]
    peaks = peaks if MEMORY in only else []

    result = {
        "date": datetime.date.today().isoformat(),
        "sizes": sizes,
        "machine": describe(device),
        "problem": {"variogram": VARIOGRAM.to_dict(), "logit_scale": LOGIT_SCALE},
        "times": [],
        "memory": [],
    }
    with Progress(len(cases) + len(peaks)) as progress:
        for case in cases:
            progress.begin(f"{case.name} {case.n:,} × {case.m:,}")
            result["times"] += measure_case(case, device, budget_s=options.seconds, on_round=progress.rounds)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # leave the GPU to the processes whose memory is measured
        result["memory"] = measure_memory(peaks, device, on_case=progress.begin)

    # a partial run never writes over a whole one of the same day
    part = [] if sizes == "default" else [sizes]
    part += options.only or []
    stem = "-".join(
        [_slug(result["machine"]["processor"]) if device.type == "cuda" else "cpu", result["date"], *part]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    (options.out / f"{stem}.md").write_text(table)
    print(table)
    print(f"Written: {options.out / stem}.json and .md")
    ours = [row for row in result["times"] if row["role"] == "ours"]
    broken = [row for row in ours if row["failure"] or row["right"] is False]
    for row in broken:
        print(f"{row['case']}: {row['contender']} {row['failure'] or 'is wrong'}", file=sys.stderr)
    return 1 if broken else 0


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
