"""Groups of parameters and learning-rate schedules of a training run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

Schedule = Literal["one_cycle", "step"]


def parameter_groups(
    trained: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: matrices decay; biases, the scales of norms and the logit scale do not."""
    trained = list(trained)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "lr": learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer,
    kind: Schedule,
    *,
    steps: int,
    warm_up: float,
    decay: float,
    decay_every: int,
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of a run; every group keeps its own learning rate as the highest.

    Args:
        optimizer: whose groups hold their highest learning rates.
        kind: "one_cycle" rises from 1/25 in the first steps and falls to nearly 0 by a cosine; "step" is
            multiplied by `decay` every `decay_every` steps.
        steps: optimiser steps of the whole run.
        warm_up: fraction of the steps in which "one_cycle" rises.
        decay: factor of "step".
        decay_every: optimiser steps from one fall of "step" to the next.
    """
    if kind == "step":
        return torch.optim.lr_scheduler.StepLR(optimizer, decay_every, decay)
    # the rise takes a step at least: OneCycleLR divides by its length
    steps = max(steps, 3)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=max(warm_up, 2 / steps),
    )
