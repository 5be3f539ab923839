"""Which photos form the batch of a step: pure functions of (seed, step), so that resuming is trivial.

A sampler answers `batch(step)` without having produced the batches before it. A run that is killed at step t
starts its loader at step t and sees what it would have seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class RandomBatchSampler:
    """Every row once per epoch in a new random order; an epoch's incomplete last batch is dropped.

    Args:
        rows: number of rows in the data set.
        batch_size: rows per batch.
        seed: with the step, all there is to a batch.

    Raises:
        ValueError: `batch_size` below 1 or above `rows`.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int = 0) -> None:
        check_batch_size(batch_size, rows)
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._shuffled: tuple[int, Rows] | None = None

    def batch(self, step: int) -> Rows:
        """Return the (batch_size,) rows of this step."""
        epoch, position = divmod(step, self.rows // self.batch_size)
        if self._shuffled is None or self._shuffled[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            self._shuffled = (epoch, order)
        return self._shuffled[1][position * self.batch_size :][: self.batch_size]


def check_batch_size(batch_size: int, rows: int) -> None:
    """Refuse a batch size below 1 or above the number of rows, by a ValueError."""
    if not 1 <= batch_size <= rows:
        raise ValueError(
            f"batch_size: wanted between 1 and the {rows} rows of the data set, got {batch_size}"
        )
