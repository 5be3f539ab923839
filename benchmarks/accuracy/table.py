"""The accuracy of all contestants as plain numbers and as Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.accuracy.contestants import PLAIN
from benchmarks.accuracy.runs import Run, within
from benchmarks.accuracy.statistics import DRAWS, difference
from benchmarks.accuracy.training import ANSWERS, CALIBRATED, MOST_ALIKE
from benchmarks.table import table
from geoclip.metrics import THRESHOLDS_KM
from geoclip.support import CANDIDATES

HEAD = [
    "world",
    "batches",
    "policy",
    "answer",
    "seeds",
    *(f"{km:,} km" for km in THRESHOLDS_KM),
    "training s",
]


def rows_of(runs: Iterable[tuple[Run, dict[str, Any]]], *, validation: bool = False) -> list[dict[str, Any]]:
    """One row per world, sampler, contestant and way to answer, of finished runs and their results.

    "difference_points" is to plain InfoNCE with the same batches and training settings that answers with the
    most alike place, over the seeds that both have; None for that itself, and where it has not run.
    """
    finished: dict[tuple[str, str, str, str], dict[int, dict[str, Any]]] = {}
    for run, result in runs:
        plain_label = replace(run, contestant=PLAIN).label
        finished.setdefault((run.world, run.sampler, run.label, plain_label), {})[run.seed] = result
    rows = []
    answers = (MOST_ALIKE,) if validation else ANSWERS  # the other one is calibrated on validation photos
    for (key, results), answer in itertools.product(finished.items(), answers):
        world, sampler, label, plain_label = key
        if any(answer not in result["rings"] for result in results.values()):
            continue
        itself = label == plain_label and answer == MOST_ALIKE
        plain = {} if itself else finished.get((world, sampler, plain_label, plain_label), {})
        seeds = sorted(results.keys() & plain.keys()) or sorted(results)
        hits = np.stack([within(results[seed], answer, validation=validation) for seed in seeds])
        intervals = None
        if plain.keys() >= set(seeds):
            theirs = np.stack([within(plain[seed], validation=validation) for seed in seeds])
            intervals = [list(interval) for interval in difference(hits, theirs)]
        rows.append(
            {
                "world": world,
                "sampler": sampler,
                "label": label,
                "answer": answer,
                "contestant": results[seeds[0]]["settings"]["contestant"],
                "seeds": seeds,
                "photos": hits.shape[2],
                "accuracy_percent": (100 * hits.mean(axis=(0, 2))).tolist(),
                "accuracy_percent_by_seed": (100 * hits.mean(axis=2)).tolist(),
                "difference_points": intervals,
                "training_s": float(np.median([results[seed]["training_cpu_s"] for seed in seeds])),
            }
        )
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The table under a line on the machine and a sentence that says how to read it."""
    training = result["training"]
    return "\n".join(
        [
            f"# {result['subject'].capitalize()}: {result['date']}",
            "",
            f"{result['machine']['processor']}; {result['finished']} of {result['planned']} runs finished; "
            f"{training['steps']:,} steps of {training['batch_size']:,} photos, learning rate "
            f"{training['learning_rate']:g}, queue {training['queue_size']:,}, encoders in "
            f"{training['precision']}. {READING}",
            "",
            *table(HEAD, result["rows"], cells),
            "",
        ]
    )


READING = (
    "`none()`, answering with the most alike place, is plain InfoNCE, in percent of the held-out photos. The "
    "others: points above it with the same seeds, batches and training, with 95 % intervals over seeds and "
    f"places ({DRAWS:,} draws of both), bold where the interval excludes 0; with one seed the interval knows "
    f"of places alone. `supported`, measured for the default policy and plain InfoNCE: of the {CANDIDATES} "
    "places most alike, the one with the most probability around it, each neighbour's weighed by the "
    f"semivariogram's correlation ρ(h), at the logit scale calibrated on {CALIBRATED} validation photos. "
    "Training: median processor time of a run."
)


def cells(row: dict[str, Any]) -> list[str]:
    """The cells of a row, in the order of `HEAD`."""
    if row["difference_points"] is None:
        numbers = [f"{value:.1f} %" for value in row["accuracy_percent"]]
    else:
        numbers = [_interval(*interval) for interval in row["difference_points"]]
    return [
        row["world"],
        row["sampler"],
        f"`{row['label']}`",
        row["answer"],
        str(len(row["seeds"])),
        *numbers,
        f"{row['training_s']:.0f}",
    ]


def _interval(value: float, low: float, high: float) -> str:
    mark = "**" if low > 0 or high < 0 else ""
    return f"{mark}{value:+.1f}{mark} [{low:+.1f}, {high:+.1f}]"
