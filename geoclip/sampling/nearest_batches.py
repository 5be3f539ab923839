"""Batches of random seeds with the places nearest to them; rows may come again in later batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import BallTree

from geoclip.sampling.random_batches import RandomBatchSampler, Rows, check_batch_size


class NeighbourBatchSampler:
    """Batches of random seeds, each with the places nearest to it, then random rows up to the batch size.

    Sample4Geo's geographic-neighbour batches (Deuser et al., 2023): near places are in each other's
    denominators, and the location encoder must tell them apart. Every seed brings its nearest rows that are
    not in the batch yet, by great-circle distance. No row comes twice in a batch.

    Args:
        latlon: (N, 2) latitude and longitude of the rows in degrees.
        batch_size: rows per batch.
        neighbours: places that each seed brings.
        seeds: seeds per batch; by default as many as fit, batch_size // (1 + neighbours).
        seed: with the step, all there is to a batch.

    Raises:
        ValueError: `latlon` is not (N, 2), `batch_size` below 1 or above N, a negative number, or more seeds
            with their neighbours than `batch_size`.
    """

    def __init__(
        self,
        latlon: NDArray[np.float64],
        batch_size: int,
        *,
        neighbours: int = 7,
        seeds: int | None = None,
        seed: int = 0,
    ) -> None:
        if latlon.ndim != 2 or latlon.shape[1] != 2:
            raise ValueError(f"latlon: wanted shape (N, 2), got {latlon.shape}")
        check_batch_size(batch_size, len(latlon))
        if neighbours < 0:
            raise ValueError(f"neighbours: wanted at least 0, got {neighbours}")
        self.seeds = batch_size // (1 + neighbours) if seeds is None else seeds
        if not 0 <= self.seeds * (1 + neighbours) <= batch_size:
            raise ValueError(
                f"seeds: wanted seeds·(1 + neighbours) between 0 and batch_size {batch_size}, "
                f"got {self.seeds} seeds with {neighbours} neighbours each"
            )
        self.batch_size, self.neighbours = batch_size, neighbours
        # the tree's haversine wants radians and takes latitude first
        self._radians = np.radians(latlon)
        self._tree = BallTree(self._radians, metric="haversine")
        self._random = RandomBatchSampler(len(latlon), batch_size, seed=seed)

    def batch(self, step: int) -> Rows:
        """Return the (batch_size,) rows of this step."""
        candidates = self._random.batch(step)  # distinct: the seeds first, the others fill the batch
        seeds = candidates[: self.seeds]
        chosen = dict.fromkeys(seeds.tolist())
        if self.neighbours and self.seeds:
            # twice as many as wanted: some are taken by other seeds
            for seed_row, nearest in zip(seeds, self._nearest(seeds, 1 + 2 * self.neighbours), strict=True):
                self._add_nearest(seed_row, nearest, chosen)
        for row in candidates[self.seeds :].tolist():
            if len(chosen) == self.batch_size:
                break
            chosen.setdefault(row)
        return np.fromiter(chosen, dtype=np.int64, count=self.batch_size)

    def _nearest(self, rows: Rows, k: int) -> Rows:
        k = min(k, len(self._radians))
        nearest: Rows = self._tree.query(self._radians[rows], k=k, return_distance=False)
        return nearest

    def _add_nearest(self, seed_row: np.int64, nearest: Rows, chosen: dict[int, None]) -> None:
        wanted = len(chosen) + self.neighbours
        while True:
            for row in nearest.tolist():
                chosen.setdefault(row)
                if len(chosen) == wanted:
                    return
            nearest = self._nearest(np.array([seed_row]), 4 * len(nearest))[0]  # look further
