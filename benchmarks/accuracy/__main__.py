"""`python -m benchmarks.accuracy`: does the semivariogram loss localise better than plain InfoNCE?

Every run that has finished is kept, and a later call goes on with the ones that are missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.contestants import COMPARED, DEFAULT, PLAIN, SEARCHED, SETTINGS
from benchmarks.accuracy.detection import detect
from benchmarks.accuracy.detection import markdown as detection_markdown
from benchmarks.accuracy.plan import cost_core_hours, runs
from benchmarks.accuracy.runs import execute, result_of
from benchmarks.accuracy.samplers import SAMPLERS
from benchmarks.accuracy.table import markdown, rows_of
from benchmarks.accuracy.training import Training
from benchmarks.accuracy.worlds import DEFAULT_WORLD, WORLDS, make_world
from benchmarks.machine import describe
from benchmarks.progress import Progress

TRAINING, SETTING, SEARCH, DETECTION = "training", "settings", "search", "detection"
# how the result is called, in its file's name too
SUBJECTS = {TRAINING: "accuracy", SETTING: "settings", SEARCH: "strengths"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the tables of everything that is there."""
    options = _options(arguments)
    if options.what == DETECTION:
        rows = [row for seed in range(options.seeds) for row in detect(seed=seed)]
        _write(options.out, DETECTION, {"rows": rows}, detection_markdown)
        return 0
    torch.set_num_threads(1)  # a result does not depend on the number of cores
    training = Training(steps=options.steps, precision=options.precision)
    contestants = [COMPARED[name] for name in dict.fromkeys(["none", *options.policies])]
    if options.what == SEARCH:
        contestants = [PLAIN, *SEARCHED]
    trainings = [training]
    if options.what == SETTING:
        trainings = [replace(training, **setting) for setting in SETTINGS]
    planned = [
        run
        for settings in trainings
        for run in runs(options.worlds, contestants, options.samplers, options.seeds, settings)
    ]
    results, worlds = options.cache / "runs", options.cache / "worlds"
    pending = [run for run in planned if result_of(run, results) is None]
    print(f"{len(planned)} runs, {len(planned) - len(pending)} of them finished earlier")
    if pending and not options.tables_only:
        hours = sum(
            cost_core_hours(make_world(world, worlds), training, count)
            for world, count in Counter(run.world for run in pending).items()
        )
        print(f"{len(pending)} runs to go: about {hours:.2f} core-hours", flush=True)
        with Progress(len(pending)) as progress:
            for run in pending:
                progress.begin(f"{run.world} {run.label} {run.sampler} seed {run.seed}")
                if result_of(run, results) is None:  # else another process has finished it meanwhile
                    world = make_world(run.world, worlds, run.contestant.variogram)
                    execute(run, world, results, lambda step: progress.rounds(step + 1, training.steps))
    finished = [(run, result) for run in planned if (result := result_of(run, results)) is not None]
    if not finished:
        print("no run has finished: there is nothing to write", file=sys.stderr)
        return 1
    result = {
        "training": asdict(training),
        "planned": len(planned),
        "finished": len(finished),
        "rows": rows_of(finished, validation=options.what == SEARCH),
    }
    some = "" if options.full or not options.named_worlds else "-" + "-".join(options.worlds)
    _write(options.out, SUBJECTS[options.what], result, markdown, some)
    return 0


def _write(
    folder: Path,
    subject: str,
    result: dict[str, Any],
    markdown: Callable[[dict[str, Any]], str],
    some: str = "",
) -> None:
    date = datetime.date.today().isoformat()
    result = {"subject": subject, "date": date, "machine": describe(torch.device("cpu")), **result}
    text = markdown(result)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{subject}-{date}{some}"
    stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_name(stem.name + ".md").write_text(text)
    print(text)
    print(f"Written: {stem}.json and .md")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semivario-kernels" / "accuracy"
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=(TRAINING, SETTING, SEARCH, DETECTION),
        default=TRAINING,
        help="accuracy after training; the same under other learning rates and starting logit scales; the "
        "search for strengths, on validation photos; or the detection of planted negatives (default: "
        "%(default)s)",
    )
    parser.add_argument("--full", action="store_true", help="all worlds, policies and samplers")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, help=f"default: {DEFAULT_WORLD}")
    parser.add_argument(
        "--policies", nargs="+", choices=COMPARED, help=f"beside plain InfoNCE; default: {DEFAULT[-1]}"
    )
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, help="default: neighbours")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind (default: 5)")
    parser.add_argument("--steps", type=int, default=Training.steps, help="of a run (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=("bfloat16", "float32"), default=Training.precision, help="of the encoders"
    )
    parser.add_argument("--tables-only", action="store_true", help="run nothing, write what has finished")
    parser.add_argument("--cache", type=Path, default=cache, help="finished runs and worlds (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the tables")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: wanted at least 1, got {getattr(options, name)}")
    options.named_worlds = bool(options.worlds)
    options.worlds = options.worlds or (list(WORLDS) if options.full else [DEFAULT_WORLD])
    options.policies = options.policies or list(COMPARED if options.full else DEFAULT)
    options.samplers = options.samplers or (list(SAMPLERS) if options.full else ["neighbours"])
    return options


if __name__ == "__main__":
    sys.exit(main())
