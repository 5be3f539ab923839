"""The table that names a pair's distance bin without a search; csrc/binning.h reads it."""

from __future__ import annotations

from dataclasses import dataclass

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
    half_chord = np.sqrt(squared_chord_edges[squared_chord_edges > 0][0]) / 2
    shortest_km = max(2 * EARTH_RADIUS_KM * np.arcsin(min(half_chord, 1)) * (1 - 1e-5), 1e-30)
    tables = (
        _table(squared_chord_edges, shortest_km if offset == 0 else 0.0, offset, shift)
        for shift in range(MANTISSA_BITS, -1, -1)
        for offset in (0.0, EQUAL_WIDTH)
        if (_bits(FARTHEST_KM + offset) - _bits(shortest_km if offset == 0 else offset)) >> shift < MOST_CELLS
    )
    best, fewest = None, np.inf
    for table, share in tables:
        if share < fewest:
            best, fewest = table, share
        if fewest < FEW_NEAR_EDGES:
            break
    assert best is not None
    return best


def _table(
    edges: npt.NDArray[np.float64], shortest_km: float, offset: float, shift: int
) -> tuple[BinTable, float]:
    """A table, and the share of the distances up to half a turn whose cell has an edge in it or beside it."""
    first, last = _bits(shortest_km + offset) >> shift, _bits(FARTHEST_KM + offset) >> shift
    starts = (np.arange(first, last + 2, dtype=np.int64) << shift).astype(np.uint32).view(np.float32)
    km = starts.astype(np.float64) - offset
    low, high = km[:-1].copy(), km[1:]
    low[0] = 0.0  # all shorter distances fall into the first cell
    # distances come in float32 or in whole units of 4 m, and their sum with the offset is rounded
    slack = np.maximum(4e-3, 1e-6 * high) + offset * 2.0**-MANTISSA_BITS
    lowest = np.searchsorted(edges, _squared_chord(low - slack), side="right")
    highest = np.searchsorted(edges, _squared_chord(high + slack), side="right")
    is_open = lowest != highest
    cells = np.where(is_open, NEAR_EDGE + lowest, lowest).astype(np.int32)
    share = float(((high - low) * is_open).sum() / FARTHEST_KM)
    return BinTable(np.append(edges, np.inf), cells, first, shift, offset), share


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _squared_chord(km: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    half_angle = np.clip(km / (2 * EARTH_RADIUS_KM), 0, np.pi / 2)
    return 4 * np.square(np.sin(half_angle))
