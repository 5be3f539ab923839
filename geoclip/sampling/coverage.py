"""What an epoch's batches cover, in numbers to be logged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoclip.coordinates import unit_vectors
from semivario_kernels import EARTH_RADIUS_KM

MEASURED_BATCHES = 64  # of an epoch, evenly spaced: distances within a batch grow with its square


class Coverage(NamedTuple):
    """One epoch of one sampler.

    Attributes:
        batches: number of batches.
        distinct_rows: rows that come at least once.
        left_out: rows that do not come.
        mean_neighbour_km: great-circle distance to the nearest other row of the batch, km, mean over the rows
            of up to 64 batches; NaN without places.
    """

    batches: int
    distinct_rows: int
    left_out: int
    mean_neighbour_km: float


def coverage(batches: NDArray[np.integer], rows: int, latlon: NDArray[np.float64] | None = None) -> Coverage:
    """Count an epoch's distinct rows and measure how near the places of a batch lie to each other.

    Args:
        batches: (B, batch_size) rows.
        rows: rows of the data set.
        latlon: (rows, 2) latitude and longitude in degrees.

    Raises:
        ValueError: `latlon` has another number of rows.
    """
    distinct = len(np.unique(batches))
    nearest_km = float("nan")
    if latlon is not None:
        if len(latlon) != rows:
            raise ValueError(f"latlon: wanted {rows} rows, got {len(latlon)}")
        measured = batches[:: -(-len(batches) // MEASURED_BATCHES)]
        nearest_km = float(np.mean([_nearest_km(unit_vectors(latlon[batch])) for batch in measured]))
    return Coverage(len(batches), distinct, rows - distinct, nearest_km)


def _nearest_km(p: NDArray[np.float64]) -> float:
    squared = ((p[:, None] - p[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    half_chord = np.sqrt(squared.min(axis=1)) / 2
    return float((2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(half_chord, 1))).mean())
