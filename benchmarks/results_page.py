"""`python -m benchmarks.results_page`: docs/results.md and its pictures, from what benchmarks/results/ holds.

Of every subject and device the newest file of a whole run counts, whatever its sizes, and after it those of
some of its cases that are newer. Of accuracy a newer file's worlds take the place of the older ones'. No
number is typed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.table import HEAD, READING, cells
from benchmarks.accuracy.training import ANSWERS
from benchmarks.growth import plot as plot_growth
from benchmarks.table import table
from benchmarks.vector_figure import save_svg
from geoclip.metrics import THRESHOLDS_KM

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
# the page's order; what is not named here is no result for users
SECTIONS = {
    "accuracy": "Does it localise better?",
    "settings": "Does it under other learning rates and temperatures?",
    "strengths": "Which strengths?",
    "detection": "Does it find hard and false negatives?",
    "loss": "The loss: time and memory",
    "growth": "The loss: growth with N and M",
    "semivariogram": "The semivariogram",
    "operators": "Distances, top-k, batches, reading",
    "neighbours": "Nearest places",
    "data-reading": "Reading data sets",
}
# above the first table of accuracies
WORLDS = """Worlds: `field-0.4`, `-0.8` and `-1.2` are 94,100 real places, 6,000 of them held out, whose
photos are the official GeoCLIP location encoder's output plus noise of that length; `synthetic` is 800
towns of 24 photos, drawn from random fields of known semivariogram, with look-alikes far away; `rendered`
are pictures rendered of those towns, seen through an untrained encoder. The gallery holds the held-out
places. Batches: `random` photos; `neighbours`, random seeds with the nearest seven; `geographic`, `similar`
and `surprise` visit every photo once an epoch, the nearest together, the most alike, or the more alike than
expected. A policy may be `rising` from 0 over the training, `falling` to 0 or set in `late`, after half of
it. `distance(strength=147.4, scale_km=1e+09)` adds 5 to every negative, wherever it is: a margin without a
semivariogram."""
COLORS = ("#d9622b", "#2f6fb0")  # of the two answers
_PLOTTED_KM = (1, 25)


def main() -> int:
    """Write the page; the exit status is 1 where there is no result."""
    found = newest(RESULTS)
    if not found:
        print(f"{RESULTS}: no results", file=sys.stderr)
        return 1
    PAGE.write_text(page(found, PAGE.parent / "images"))
    print(f"Written: {PAGE}, of {', '.join(path.name for paths in found.values() for path in paths)}")
    return 0


def newest(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """The newest whole JSON of each subject and device and the newer partial ones, in the page's order."""
    files: dict[tuple[str, str], list[tuple[bool, str, bool, Path]]] = {}
    for path in sorted(folder.glob("*.json")):
        named = re.fullmatch(r"(.*?)-?(\d{4}-\d{2}-\d{2})(.*)", path.stem)
        if named is None:
            continue
        before, date, after = named.groups()
        subject = next((name for name in SECTIONS if before.startswith(name)), "")
        if not subject:
            # the loss's files are named for the processor alone; other subjects have names of their own
            result = json.loads(path.read_text())
            if "times" not in result or result.get("subject", "loss") != "loss":
                continue
            subject = "loss"
        device = before.removeprefix(subject).strip("-")
        files.setdefault((subject, device), []).append((after in ("", "-full"), date, not after, path))
    order = list(SECTIONS)
    found: dict[tuple[str, str], list[Path]] = {}
    for key in sorted(files, key=lambda key: (order.index(key[0]), key[1])):
        _, date, _, first = max(files[key])
        parts = [path for whole, day, _, path in sorted(files[key]) if not whole and day > date]
        found[key] = [first, *parts]
    return found


def page(found: dict[tuple[str, str], list[Path]], images: Path) -> str:
    """The page's Markdown; pictures go to `images`."""
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks.results_page` from the files under `benchmarks/results/`. Your "
        "own: `make bench` for time and memory, `python -m benchmarks.accuracy` for accuracy.",
        "",
    ]
    images.mkdir(parents=True, exist_ok=True)
    headed = ""
    for (subject, device), path in ((key, path) for key, paths in found.items() for path in paths):
        result = json.loads(path.read_text())
        if subject != headed:
            lines += [f"## {SECTIONS[subject]}", ""]
            lines += [WORLDS, ""] if subject == "accuracy" else []
            headed = subject
        of_accuracy = subject in ("accuracy", "settings", "strengths")
        if of_accuracy:
            paths = found[subject, device]
            again = _worlds(paths[paths.index(path) + 1 :])
            result["rows"] = [row for row in result["rows"] if row["world"] not in again]
            if not result["rows"]:
                continue
        lines += [f"From `{path.name}`.", ""]
        if of_accuracy:
            lines += _accuracy(result, subject, images)
        else:
            if subject == "growth":
                plot_growth(result, images / f"growth-{device}.svg")
                lines += [f"![time and memory against N and M](images/growth-{device}.svg)", ""]
            # its own heading becomes one below the section's
            lines += ["##" + path.with_suffix(".md").read_text().strip(), ""]
    return "\n".join(lines)


def _worlds(paths: list[Path]) -> set[str]:
    """The worlds that files of accuracies hold."""
    return {row["world"] for path in paths for row in json.loads(path.read_text())["rows"]}


def _accuracy(result: dict[str, Any], subject: str, images: Path) -> list[str]:
    training = result["training"]
    lines = [
        f"{training['steps']:,} steps of {training['batch_size']:,} photos, learning rate "
        f"{training['learning_rate']:g}; {result['finished']} of "
        f"{result['planned']} planned runs had finished on {result['date']}. "
        + "Of validation photos, which no other table reads. " * (subject == "strengths")
        + READING,
        "",
    ]
    for world in dict.fromkeys(row["world"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["world"] == world]
        name = f"{subject}-{world}.svg"
        if any(row["difference_points"] for row in rows):
            _plot_differences(rows, images / name)
            lines += [f"![points above plain InfoNCE, world {world}](images/{name})", ""]
        lines += [*table(HEAD, rows, cells), ""]
        if subject == "accuracy":
            lines += [_aim(rows), ""]
    return lines


def _aim(rows: list[dict[str, Any]]) -> str:
    """Which rows of a world reach what the loss is for."""
    near, far = THRESHOLDS_KM.index(1), THRESHOLDS_KM.index(25)
    reach: dict[str, dict[str, list[str]]] = {answer: {} for answer in ANSWERS}
    for row in rows:
        if row["difference_points"] is None:
            continue
        (_, near_low, _), (gain, low, _) = row["difference_points"][near], row["difference_points"][far]
        if gain >= 4 and low > 0 and near_low > -1:
            words = f"`{row['label']}` ({len(row['seeds'])} seeds)"
            reach[row["answer"]].setdefault(row["sampler"], []).append(words)
    alone, supported = (
        "; ".join(f"on batches {sampler!r} by {', '.join(words)}" for sampler, words in reach[answer].items())
        or "by none"
        for answer in ANSWERS
    )
    return (
        "The aim, over five seeds: at least 4 points above plain InfoNCE within 25 km, the interval above 0, "
        "and within 1 km an interval above -1. By the loss alone, answering with the most alike place, it is "
        f"reached {alone}. Answering with the supported place, it is reached {supported}."
    )


def _plot_differences(rows: list[dict[str, Any]], path: Path) -> None:
    """A line for each policy and sampler: its difference and interval, for either answer."""
    shown = [row for row in rows if row["difference_points"]]
    lines = list(dict.fromkeys((row["sampler"], row["label"]) for row in shown))
    figure = Figure(figsize=(11, 1.2 + 0.3 * len(lines)), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(_PLOTTED_KM), sharey=True))
    for ax, km in zip(panels, _PLOTTED_KM, strict=True):
        threshold = THRESHOLDS_KM.index(km)
        for k, answer in enumerate(ANSWERS):
            of_answer = [row for row in shown if row["answer"] == answer]
            at = [lines.index((row["sampler"], row["label"])) + 0.3 * k - 0.15 for row in of_answer]
            intervals = [row["difference_points"][threshold] for row in of_answer]
            value, low, high = np.array(intervals).reshape(-1, 3).T
            reach = [value - low, high - value]
            ax.errorbar(value, at, xerr=reach, fmt="o", markersize=4, color=COLORS[k], label=answer)
        ax.axvline(0, color="#7c8aa0", linewidth=0.8)
        ax.set_title(f"points above plain InfoNCE within {km:,} km", fontsize=9)
    panels[0].set_yticks(range(len(lines)), [f"{label}, {sampler}" for sampler, label in lines], fontsize=7)
    panels[0].invert_yaxis()
    panels[-1].legend(frameon=False, fontsize=8)
    save_svg(figure, path)


if __name__ == "__main__":
    sys.exit(main())
