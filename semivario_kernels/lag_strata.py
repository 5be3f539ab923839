"""Lag strata: bands of bins, each estimated from a random subset of the places of its own size.

Pairs at short lags are rare, and cheap to find where far tiles are left out; pairs at long lags are nearly
all of the N², and any small subset of the places holds plenty. So each band of lags takes as many places as
its share of the pairs allows: all pairs within one random subset, every pair of a bin as likely as any other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SPAN = 4.0  # last edge of a stratum over its first
MOST_STRATA = 6


def lag_strata(edges_km: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Bands (first bin, last bin + 1) from short to long lags, of a factor 4 each from the last edge down."""
    strata: list[tuple[int, int]] = []
    last = len(edges_km) - 1
    while last > 0:
        first = int(np.searchsorted(edges_km, edges_km[last] / SPAN))
        first = 0 if len(strata) == MOST_STRATA - 1 else min(first, last - 1)
        strata.append((first, last))
        last = first
    return strata[::-1]
