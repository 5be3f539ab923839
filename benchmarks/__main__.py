"""`python -m benchmarks`: time and memory of the operators, as JSON, Markdown tables and a plot."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import benchmarks.semivariogram.cases as semivariogram
import benchmarks.semivariogram.on_gpu as on_gpu
from benchmarks.cases import Sizes, memory_cases, time_cases
from benchmarks.machine import describe
from benchmarks.measure import measure_case
from benchmarks.memory import measure_memory
from benchmarks.problem import LOGIT_SCALE, VARIOGRAM
from benchmarks.progress import Progress
from benchmarks.semivariogram.measure import measure_case as measure_semivariogram
from benchmarks.semivariogram.memory import measure_peaks
from benchmarks.semivariogram.table import markdown as semivariogram_markdown
from benchmarks.table import markdown

LOSS, SEMIVARIOGRAM, GROWTH, OPERATORS = "loss", "semivariogram", "growth", "operators"
ON_CPU_ONLY = (GROWTH, OPERATORS)
MEMORY, PEAK = "memory", "peak"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; the exit status is 1 where one of our backends fails or is wrong.

    The times of the loss and of the semivariogram are also written after every case, as "…-unfinished", until
    the run has ended: one that is stopped loses nothing.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "subject",
        nargs="?",
        choices=(LOSS, SEMIVARIOGRAM, GROWTH, OPERATORS),
        help="what to measure (default: all)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"cases by name; '{MEMORY}' or '{PEAK}' for peak memory"
    )
    parser.add_argument("--full", action="store_true", help="more and larger cases")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="timed rounds of a case of the loss; 3 rounds at least (default: 10)",
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
    subjects = [options.subject] if options.subject else [LOSS, SEMIVARIOGRAM, GROWTH, OPERATORS]
    if device.type == "cuda":
        if options.subject in ON_CPU_ONLY:
            parser.error(f"--device: {options.subject} runs on the CPU only")
        subjects = [subject for subject in subjects if subject not in ON_CPU_ONLY]
    sizes: Sizes = "quick" if options.quick else "full" if options.full else "default"

    names = {
        LOSS: [*dict.fromkeys(case.name for case in time_cases(device, sizes)), MEMORY],
        GROWTH: [GROWTH],
        SEMIVARIOGRAM: (
            [case.name for case in on_gpu.CASES]
            if device.type == "cuda"
            else [*(case.name for case in semivariogram.time_cases(sizes)), PEAK]
        ),
        OPERATORS: [OPERATORS],
    }
    known = [name for subject in subjects for name in names[subject]]
    only = options.only or known
    if unknown := [name for name in only if name not in known]:
        parser.error(f"--only: wanted some of {', '.join(known)}, got {', '.join(unknown)}")
    broken = []
    for subject in subjects:
        chosen = [name for name in only if name in names[subject]]
        if not chosen:
            continue
        measure, tables = _subject(subject, device)
        head = {
            "subject": subject,
            "date": datetime.date.today().isoformat(),
            "sizes": sizes,
            "machine": describe(device),
        }
        # a partial run never writes over a whole one of the same day
        parts = [subject] * (subject != LOSS)
        parts += [_slug(head["machine"]["processor"]) if device.type == "cuda" else "cpu", head["date"]]
        parts += [sizes] * (sizes != "default") + (chosen if options.only else [])
        stem = options.out / "-".join(parts)
        unfinished = stem.with_name(stem.name + "-unfinished")

        def keep(found: dict[str, Any], head=head, unfinished=unfinished, tables=tables) -> None:
            _write(unfinished, head | found, tables(head | found))

        result = head | measure(chosen, device, sizes, options.seconds, keep)
        _write(stem, result, tables(result))
        for suffix in (".json", ".md"):
            unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
        print(tables(result))
        print(f"Written: {stem}.json and .md")
        ours = [row for row in result["times"] if row["role"] == "ours"]
        broken += [row for row in ours if row["failure"] or row["right"] is False]
    for row in broken:
        print(f"{row['case']}: {row['contender']} {row['failure'] or 'is wrong'}", file=sys.stderr)
    return 1 if broken else 0


Keep = Callable[[dict[str, Any]], None]
Measure = Callable[[list[str], torch.device, Sizes, float, Keep], dict[str, Any]]


def _measure_loss(
    only: list[str], device: torch.device, sizes: Sizes, seconds: float, keep: Keep
) -> dict[str, Any]:
    problem = {"variogram": VARIOGRAM.to_dict(), "logit_scale": LOGIT_SCALE}
    cases = [case for case in time_cases(device, sizes) if case.name in only]
    peaks = memory_cases(device, sizes) if MEMORY in only else []
    times: list[dict[str, Any]] = []
    with Progress(len(cases) + len(peaks)) as progress:
        for case in cases:
            progress.begin(f"{case.name} {case.n:,} × {case.m:,}")
            times += measure_case(case, device, budget_s=seconds, on_round=progress.rounds)
            keep({"problem": problem, "times": times, "memory": []})
        if device.type == "cuda":
            torch.cuda.empty_cache()  # leave the GPU to the processes whose memory is measured
        memory = measure_memory(peaks, device, on_case=progress.begin)
    return {"problem": problem, "times": times, "memory": memory}


def _measure_semivariogram(
    only: list[str], device: torch.device, sizes: Sizes, _: float, keep: Keep
) -> dict[str, Any]:
    if device.type == "cuda":
        on_device = [case for case in on_gpu.CASES if case.name in only]
        with Progress(len(on_device)) as progress:
            times = on_gpu.measure_on_gpu(on_device, device, on_case=progress.begin)
        return {"times": times, "memory": []}
    cases = [case for case in semivariogram.time_cases(sizes) if case.name in only]
    peaks = semivariogram.peak_cases(sizes) if PEAK in only else []
    times = []
    with Progress(len(cases) + len(peaks)) as progress:
        for case in cases:
            progress.begin(f"{case.name} {case.n:,} places, {case.rival}")
            times += measure_semivariogram(case, on_round=progress.rounds)
            keep({"times": times, "memory": []})
        memory = measure_peaks(peaks, on_case=progress.begin)
    return {"times": times, "memory": memory}


def _subject(subject: str, device: torch.device) -> tuple[Measure, Callable[[dict[str, Any]], str]]:
    """What measures a subject, and what makes its table; a GPU machine lacks packages of the other two."""
    if subject == LOSS:
        return _measure_loss, markdown
    if subject == SEMIVARIOGRAM:
        return _measure_semivariogram, on_gpu.markdown if device.type == "cuda" else semivariogram_markdown
    if subject == GROWTH:
        from benchmarks import growth

        return (lambda *options: growth.measure(*options[:-1])), growth.markdown
    from benchmarks import operators

    return (lambda *options: operators.measure(*options[:-1])), operators.markdown


def _write(stem: Path, result: dict[str, Any], text: str) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_name(stem.name + ".md").write_text(text)
    if result["subject"] == GROWTH:
        from benchmarks.growth import plot

        plot(result, stem.with_name(stem.name + ".svg"))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
