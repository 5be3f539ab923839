"""Which runs answer the question, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.accuracy.contestants import PLAIN, Contestant
from benchmarks.accuracy.runs import Run
from benchmarks.accuracy.samplers import batches
from benchmarks.accuracy.training import Training, errors_km, train
from benchmarks.accuracy.world import World

_TRIAL_STEPS = 20


def runs(
    worlds: Sequence[str],
    contestants: Sequence[Contestant],
    samplers: Sequence[str],
    seeds: int,
    training: Training,
) -> list[Run]:
    """All combinations; seeds go first to last, so that whatever is finished has equal numbers of them."""
    return [
        Run(world, contestant, sampler, seed, training)
        for world in worlds
        for seed in range(seeds)
        for sampler in samplers
        for contestant in contestants
    ]


def cost_core_hours(world: World, training: Training, pending: int) -> float:
    """Processor time of `pending` runs, from a trial of a few steps and one evaluation on this machine."""
    short = replace(training, steps=_TRIAL_STEPS)
    rows = batches(world, "neighbours", short, 0)
    start = time.process_time()
    model = train(world, rows, PLAIN.policy, short, 0)
    step = (time.process_time() - start) / _TRIAL_STEPS
    start = time.process_time()
    errors_km(model, world)
    evaluation = time.process_time() - start
    return pending * (training.steps * step + evaluation) / 3600
