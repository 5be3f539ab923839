"""`geoclip demo`: all of it on real coordinates, without photos, in minutes.

The official location encoder's field at 100,000 real places, plus noise, stands in for photos. Three students
learn it: with plain InfoNCE on random batches; and on batches of neighbouring places, where false negatives
are many, with plain InfoNCE and with the semivariogram loss. A demo that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.neighbors import BallTree

from geoclip.embedding_store import EmbeddingStore
from geoclip.field import write_field_world
from geoclip.fit import PARENT, load_trained, read_curves
from geoclip.gallery import Gallery
from geoclip.lightning_command import CHECKPOINT
from geoclip.measure import load_variogram, measure_variogram
from geoclip.metrics import Metrics, compare_metrics, geolocation_metrics, great_circle_km
from geoclip.report import write_report
from geoclip.upstream import read_gallery
from semivario_kernels import VariogramFit, VariogramModel, log_edges_km
from semivario_kernels.atomic import write_atomically

# name in the report: folder, and what its settings have beside the shared ones
RUNS = {
    "InfoNCE, neighbours": ("plain", {"model.policy": "none", "data.sampler": "neighbours"}),
    "InfoNCE, random": ("random", {"model.policy": "none", "data.sampler": "random"}),
    "explained, neighbours": (
        "explained",
        {
            "model.policy": "explained",
            "model.strengths": '{"hard": 0, "false": 3, "far": 5}',  # the defaults, for the report to name
            "data.sampler": "neighbours",
        },
    ),
}
_LOG = "fit.log"
READING = (
    "On batches of neighbouring places, where false negatives are many, the semivariogram loss is compared "
    "with plain InfoNCE; random batches, where they are few, are the yardstick. A difference counts where "
    "its interval excludes 0."
)
SETTINGS = Path(__file__).parent / "configs" / "demo.yaml"
NOTE = (
    "No photo was used: an image embedding here is the official GeoCLIP location encoder's output at a real "
    "place, plus noise."
)


def run_demo(
    out: Path,
    *,
    steps: int | None = None,
    places: int | None = None,
    held_out: int = 4000,
    noise: float = 0.8,
    seed: int = 0,
) -> None:
    """Make the data, fit the semivariogram, train, evaluate, and write `metrics.json` and `report.html`.

    Args:
        out: folder for all of it. What is there already is not made again.
        steps: training steps of each run; by default those of the shipped settings.
        places: how many of the official 100,000 coordinates, from the first on; all by default.
        held_out: places that only the evaluation sees.
        noise: length of the noise on the unit embeddings.
        seed: of everything random.

    Raises:
        ValueError: a bad argument, or `out` holds a demo made with others.
        UpstreamUnavailable: the official weights are not there and cannot be fetched.
        OSError: `out` cannot be written.
        RuntimeError: a training process failed; the message ends with its last words.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps: wanted at least 1, got {steps}")
    if places is not None and places < 1:
        raise ValueError(f"places: wanted at least 1, got {places}")
    out.mkdir(parents=True, exist_ok=True)
    shared = yaml.safe_load(SETTINGS.read_text())
    seconds = _Stopwatch(out / "timing.json")
    with seconds("data"):
        train, test = write_field_world(
            out / "world", noise=noise, held_out=held_out, seed=seed, gallery=read_gallery()[:places]
        )
    with seconds("semivariogram"):
        fit = _variogram(train, out / "variogram.json", seed)
    half, all_but_5 = fit.model.range_km(0.5), fit.model.range_km()
    print(
        f"semivariogram: half of the correlation is gone after {half:,.1f} km, 95 % after {all_but_5:,.0f} km"
    )
    with seconds("training"):
        _train(out, train, shared["trainer"]["max_steps"] if steps is None else steps, seed)
    with seconds("evaluation", again=True):
        gallery = np.load(out / "world" / "gallery.npy")
        predicted = {run: _predict(out / folder, test, gallery) for run, (folder, _) in RUNS.items()}
        metrics = {run: geolocation_metrics(latlon, test.latlon) for run, latlon in predicted.items()}
        first, *_, last = predicted
        comparison = compare_metrics(predicted[first], predicted[last], test.latlon)
    result = {
        "note": NOTE,
        "runs": metrics,
        "difference": {f"{last} minus {first}": comparison},
        "seconds": seconds.taken,
    }
    write_atomically(out / "metrics.json", lambda file: file.write(json.dumps(result, indent=1).encode()))
    write_report(
        out / "report.html",
        title="GeoCLIP with the semivariogram loss: the demo",
        note=f"{NOTE} {READING}",
        variogram=fit.empirical,
        fit=fit,
        curves={run: read_curves(out / folder) for run, (folder, _) in RUNS.items()},
        metrics=metrics,
        comparison=comparison,
        true_latlon=test.latlon,
        predicted=predicted,
        gallery_latlon=gallery,
        pairs=_pairs(train, fit.model, seed),
        hyperparameters={
            **dict(load_trained(out / RUNS[last][0] / CHECKPOINT).hparams),
            "batch size": shared["data"]["batch_size"],
            "noise": noise,
            "held-out places": held_out,
        },
        timing=seconds.taken,
    )
    print(_summary(metrics, comparison, out))


class _Stopwatch:
    """Seconds per stage, kept over interruptions; says which one begins."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.taken: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def __call__(self, stage: str, *, again: bool = False) -> Iterator[None]:
        print(f"{stage} …", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            earlier = 0.0 if again else self.taken.get(stage, 0.0)
            self.taken[stage] = round(earlier + time.monotonic() - start, 1)
            write_atomically(self._file, lambda file: file.write(json.dumps(self.taken).encode()))


def _variogram(train: EmbeddingStore, out: Path, seed: int) -> VariogramFit:
    if out.exists():
        return load_variogram(out)
    return measure_variogram(train, out, places=6000, edges_km=log_edges_km(1.0, 20_000.0, 30), seed=seed)


def _train(out: Path, train: EmbeddingStore, steps: int, seed: int) -> None:
    """Run `geoclip fit` once per run, one core each, as many at a time as there are cores.

    That is as fast as all cores for one run after the other, and a run's weights do not depend on the cores.
    """
    waiting = [run for run, (folder, _) in RUNS.items() if not _finished(out / folder, steps)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    columns = (
        TextColumn("{task.description:22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {run: progress.add_task(run, total=steps) for run in waiting}
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    run = waiting.pop(0)
                    running[run] = _start(run, out, train, steps, seed)
                time.sleep(0.5)
                for run, process in list(running.items()):
                    ended = process.poll() is not None
                    # a log that is being written may lack its last line's end
                    with suppress(OSError, ValueError, KeyError):
                        progress.update(tasks[run], completed=read_curves(out / RUNS[run][0])["step"][-1] + 1)
                    if ended:
                        _check_ended_well(run, process.returncode, out)
                        del running[run]
        finally:
            for process in running.values():
                process.terminate()
                process.wait()


def _start(run: str, out: Path, train: EmbeddingStore, steps: int, seed: int) -> subprocess.Popen[bytes]:
    folder, own = RUNS[run]
    settings = {
        "config": SETTINGS,
        "out": out / folder,
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": min(10, steps),  # a run without a logged step has no curve
        "data.train": train.path,
        "model.variogram": out / "variogram.json",
        "model.seed": seed,
        **own,
    }
    command = [sys.executable, "-m", "geoclip", "fit"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    (out / folder).mkdir(parents=True, exist_ok=True)
    with open(out / folder / _LOG, "w") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _check_ended_well(run: str, code: int, out: Path) -> None:
    if code != 0:
        log = out / RUNS[run][0] / _LOG
        last_words = " ".join(log.read_text().strip().splitlines()[-1:])
        raise RuntimeError(f"{run}: training ended with code {code}: {last_words} (see {log})")


def _finished(folder: Path, steps: int) -> bool:
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        return False
    module = load_trained(checkpoint)
    if module.steps_wanted != steps:
        raise ValueError(
            f"steps: {folder.parent} holds a demo of {module.steps_wanted} steps, got {steps}; "
            "choose another folder"
        )
    return module.steps_done == steps


def _predict(folder: Path, test: EmbeddingStore, places: NDArray[np.float64]) -> NDArray[np.float64]:
    gallery = Gallery(load_trained(folder / CHECKPOINT).model, places)
    latlon, _ = gallery.place(torch.from_numpy(test.read(np.arange(len(test)))))
    best: NDArray[np.float64] = latlon[:, 0]
    return best


def _pairs(train: EmbeddingStore, model: VariogramModel, seed: int) -> dict[str, NDArray[np.float64]]:
    """Pairs for the plot of surprise: near ones are rare among random pairs, so half come from neighbours."""
    rng = np.random.default_rng(seed)
    places, neighbours = min(1000, len(train)), min(31, len(train))
    radians = np.radians(train.latlon)
    first = rng.permutation(len(train))[:places]
    near = BallTree(radians, metric="haversine").query(radians[first], k=neighbours, return_distance=False)
    first = np.repeat(first, near.shape[1])
    i, j = np.concatenate([first, first]), np.concatenate([near.ravel(), rng.permutation(first)])
    i, j = i[i != j], j[i != j]
    v, u = (torch.nn.functional.normalize(torch.from_numpy(train.read(rows)), dim=1) for rows in (i, j))
    h_km = great_circle_km(train.latlon[i], train.latlon[j])
    return {"h_km": h_km, "d": 1 - (v * u).sum(dim=1).double().numpy(), "gamma": model(h_km)}


def _summary(metrics: dict[str, Metrics], comparison: Metrics, out: Path) -> str:
    columns = {"within_1_km": "1 km", "within_25_km": "25 km", "within_200_km": "200 km"}
    lines = [
        f"{'held-out places found':24}" + "".join(f"{name:>10}" for name in [*columns.values(), "median"])
    ]
    for run, values in metrics.items():
        cells = "".join(f"{100 * values[key]['value']:8.1f} %" for key in columns)
        lines.append(f"{run:24}{cells}{values['median_km']['value']:7.2f} km")
    first, *_, last = metrics
    lines.append(f"{last} minus {first}, with 95 % intervals:")
    for key, name in columns.items():
        value, low, high = (100 * comparison[key][of] for of in ("value", "low", "high"))
        lines.append(f"  within {name:>6} {value:+6.1f} points [{low:+.1f}, {high:+.1f}]")
    lines += textwrap.wrap(READING, 80)
    lines.append(f"report:  {out / 'report.html'}\nnumbers: {out / 'metrics.json'}")
    return "\n".join(lines)
