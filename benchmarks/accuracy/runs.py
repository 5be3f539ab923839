"""Runs that are kept: each result is one small JSON file, found by the settings of the run."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.contestants import SUPPORTED_TOO, Contestant
from benchmarks.accuracy.samplers import batches
from benchmarks.accuracy.training import ANSWERS, MOST_ALIKE, Training, errors_km, train
from benchmarks.accuracy.world import World
from geoclip.metrics import THRESHOLDS_KM
from semivario_kernels.atomic import write_atomically

# raised by whoever changes what a run computes, so that no result of the old code is taken for one of the new
REVISION = 2


@dataclass(frozen=True)
class Run:
    """One training: equal settings give the same result."""

    world: str
    contestant: Contestant
    sampler: str
    seed: int
    training: Training

    @property
    def label(self) -> str:
        """The contestant's, and what of the training is not as usual."""
        usual = Training()
        words = {"learning rate": "learning_rate", "logit scale from": "logit_scale"}
        unusual = [
            f"{word} {getattr(self.training, name):g}"
            for word, name in words.items()
            if getattr(self.training, name) != getattr(usual, name)
        ]
        return ", ".join([self.contestant.label, *unusual])

    @property
    def answers(self) -> tuple[str, ...]:
        """Both for the default comparison; how the others answer by support tells nothing new."""
        return ANSWERS if self.contestant in SUPPORTED_TOO else (MOST_ALIKE,)

    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, as plain values."""
        return {
            "revision": REVISION,
            "world": self.world,
            "contestant": self.contestant.settings(),
            "sampler": self.sampler,
            "seed": self.seed,
            "training": json.loads(json.dumps(asdict(self.training))),
        }

    def path(self, cache: Path) -> Path:
        """Where the result is kept."""
        text = json.dumps(self.settings(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = re.sub(r"[^a-z0-9.]+", "-", self.label.lower()).strip("-")
        return cache / f"{self.world}_{name}_{self.sampler}_seed{self.seed}_{digest}.json"


def result_of(run: Run, cache: Path) -> dict[str, Any] | None:
    """What a finished run has left, or None, also where an answer of it is missing."""
    path = run.path(cache)
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result["rings"].keys() >= set(run.answers) else None


def execute(run: Run, world: World, cache: Path, on_step: Callable[[int], None]) -> dict[str, Any]:
    """Train, place the held-out photos, and keep the result.

    `rings` holds, for each of the run's answers, a digit per held-out photo: the index of the smallest of
    `THRESHOLDS_KM` that its error does not pass, or their number.
    """
    start, cpu = time.monotonic(), time.process_time()
    rows = batches(world, run.sampler, run.training, run.seed)
    model = train(world, rows, run.contestant.policy, run.training, run.seed, on_step=on_step)
    trained, trained_cpu = time.monotonic(), time.process_time()
    errors = errors_km(model, world, run.answers)
    result = {
        "settings": run.settings(),
        "rings": {
            answer: "".join(map(str, np.searchsorted(THRESHOLDS_KM, km))) for answer, km in errors.items()
        },
        "validation": world.validation,
        "median_km": {answer: float(np.median(km[world.validation :])) for answer, km in errors.items()},
        "logit_scale": float(model.logit_scale.detach().exp()),
        "training_s": round(trained - start, 1),
        "training_cpu_s": round(trained_cpu - cpu, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }
    cache.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(run.path(cache), lambda file: file.write(text.encode()))
    return result


def within(
    result: dict[str, Any], answer: str = MOST_ALIKE, *, validation: bool = False
) -> NDArray[np.bool_]:
    """Whether each photo was placed within each of `THRESHOLDS_KM`, (thresholds, photos)."""
    digits = np.frombuffer(result["rings"][answer].encode(), dtype=np.uint8) - ord("0")
    split = result["validation"]
    chosen = digits[:split] if validation else digits[split:]
    return chosen[None] <= np.arange(len(THRESHOLDS_KM))[:, None]
