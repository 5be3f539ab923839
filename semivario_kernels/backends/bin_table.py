"""The table that names a pair's distance bin without a search; csrc/binning.h reads it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from semivario_kernels.geometry import EARTH_RADIUS_KM

NEAR_EDGE = 2**30  # csrc/binning.h
MOST_CELLS = 2**16
FEW_NEAR_EDGES = (
    0.02  # share of the distances whose cell leaves the bin open, good enough for a smaller table
)
MANTISSA_BITS = 23
FARTHEST_KM = 20_016.0  # half the circumference is 20,015.1 km
EQUAL_WIDTH = 32_768.0  # with this offset all distances share a float32 exponent


@dataclass(frozen=True, eq=False)
class BinTable:
    """Bin 0 lies below the first edge, bin k from edge k−1 to edge k, bin K+1 beyond the last one.

    Attributes:
        edges: (K+2,) float64 squared chords, the last one infinite.
        cells: (C,) int32, one for every run of float32 values h + offset that share their leading bits: the
            bin of all its distances, or NEAR_EDGE + the lowest of their bins.
        first_cell: the leading bits of the first cell.
        shift: how many trailing bits are left away.
        offset: km; 0 makes cells of equal ratio, EQUAL_WIDTH of equal width.
    """

    edges: npt.NDArray[np.float64]
    cells: npt.NDArray[np.int32]
    first_cell: int
    shift: int
    offset: float

    @property
    def bins(self) -> int:
        """K."""
        return len(self.edges) - 2


def make_bin_table(squared_chord_edges: npt.NDArray[np.float64]) -> BinTable:
    """The smallest table that names the bin of nearly all distances, or else the one that names most."""
    half_chord = np.sqrt(np.clip(squared_chord_edges, 0, 4)) / 2
    edges_km = 2 * EARTH_RADIUS_KM * np.arcsin(half_chord)
    shortest_km = max(edges_km[edges_km > 0][0] * (1 - 1e-5), 1e-30)
    best, fewest = (0.0, MANTISSA_BITS), np.inf
    for shift, offset in product(range(MANTISSA_BITS, -1, -1), (0.0, EQUAL_WIDTH)):
        start = offset if offset else shortest_km
        if (_bits(FARTHEST_KM + offset) - _bits(start)) >> shift >= MOST_CELLS:
            continue
        share = _share_near_edges(edges_km, offset, shift)
        if share < fewest:
            best, fewest = (offset, shift), share
        if fewest < FEW_NEAR_EDGES:
            break
    return _table(squared_chord_edges, shortest_km if best[0] == 0 else 0.0, *best)


def _share_near_edges(edges_km: npt.NDArray[np.float64], offset: float, shift: int) -> float:
    """About the share of the distances up to half a turn whose cell has an edge in it or beside it."""
    slack = _slack_km(edges_km, offset)
    beside = np.concatenate([np.maximum(edges_km - slack, 0), edges_km + slack]) + offset
    cells = np.unique(beside.astype(np.float32).view(np.uint32) >> shift).astype(np.int64)
    widths = _cell_starts(cells + 1, shift) - _cell_starts(cells, shift)
    return float(widths.sum() / FARTHEST_KM)


def _slack_km(km: npt.NDArray[np.float64], offset: float) -> npt.NDArray[np.float64]:
    """Distances come in float32 or in whole units of 4 m, and their sum with the offset is rounded."""
    slack: npt.NDArray[np.float64] = np.maximum(4e-3, 1e-6 * km) + offset * 2.0**-MANTISSA_BITS
    return slack


def _cell_starts(cells: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.float64]:
    """h + offset at which the cells begin."""
    return (cells << shift).astype(np.uint32).view(np.float32).astype(np.float64)


def _table(edges: npt.NDArray[np.float64], shortest_km: float, offset: float, shift: int) -> BinTable:
    first, last = _bits(shortest_km + offset) >> shift, _bits(FARTHEST_KM + offset) >> shift
    km = _cell_starts(np.arange(first, last + 2, dtype=np.int64), shift) - offset
    low, high = km[:-1].copy(), km[1:]
    low[0] = 0.0  # all shorter distances fall into the first cell
    slack = _slack_km(high, offset)
    lowest = np.searchsorted(edges, _squared_chord(low - slack), side="right")
    highest = np.searchsorted(edges, _squared_chord(high + slack), side="right")
    cells = np.where(lowest != highest, NEAR_EDGE + lowest, lowest).astype(np.int32)
    return BinTable(np.append(edges, np.inf), cells, first, shift, offset)


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _squared_chord(km: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    half_angle = np.clip(km / (2 * EARTH_RADIUS_KM), 0, np.pi / 2)
    return 4 * np.square(np.sin(half_angle))
