"""Differences between two ways of training, with intervals that know of both sources of chance.

A result depends on the seed of the training and on the places asked about. Each draw of the bootstrap takes
seeds and places anew, independently of one another and the same for both sides (Owen's pigeonhole bootstrap,
2007).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000


class Interval(NamedTuple):
    """A difference in points, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def difference(
    ours: NDArray[np.bool_], theirs: NDArray[np.bool_], *, draws: int = DRAWS, seed: int = 0
) -> list[Interval]:
    """Accuracy of `ours` minus that of `theirs`, per threshold, in points.

    Args:
        ours: (seeds, thresholds, places), whether a place was found within a threshold.
        theirs: the same for the other side; row k of both was trained with the same seed.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"ours, theirs: wanted one shape, got {ours.shape} and {theirs.shape}")
    points = 100 * (ours.astype(np.float32) - theirs)
    seeds, thresholds, places = points.shape
    rng = np.random.default_rng(seed)
    seed_share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    by_place = points.reshape(seeds * thresholds, places)
    drawn = np.empty((draws, thresholds))
    for k in range(draws):
        counts = np.bincount(rng.integers(0, places, places), minlength=places).astype(np.float32)
        drawn[k] = seed_share[k] @ (by_place @ counts / places).reshape(seeds, thresholds)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    value = points.mean(axis=(0, 2), dtype=np.float64)
    return [Interval(*map(float, row)) for row in zip(value, low, high, strict=True)]
