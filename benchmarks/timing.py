"""Wall time of several contenders in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

MIN_ROUNDS, MAX_ROUNDS = 3, 25


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, on a GPU between two events of its stream."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        result = run()
        end.record()
        torch.cuda.synchronize(device)
        seconds = start.elapsed_time(end) / 1e3
    else:
        begin = perf_counter()
        result = run()
        seconds = perf_counter() - begin
    del result  # its memory is given back outside the measured time
    return seconds


def interleaved_seconds(
    runs: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    budget_s: float,
    on_round: Callable[[int, int], None],
) -> dict[str, list[float]]:
    """Time warmed-up `runs` in rounds A B C, A B C, …, so that a slow minute of the machine hits all alike.

    Args:
        runs: contenders by name.
        device: where they run.
        budget_s: as many rounds as fit into it, 3 at the least and 25 at the most.
        on_round: called with the rounds done and planned.

    Returns:
        Seconds of every round by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    planned, done, begin = MIN_ROUNDS, 0, perf_counter()
    while done < planned:
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, device))
        done += 1
        rounds_that_fit = int(budget_s / ((perf_counter() - begin) / done))
        planned = min(max(rounds_that_fit, MIN_ROUNDS), MAX_ROUNDS)
        on_round(done, max(planned, done))
    return seconds
