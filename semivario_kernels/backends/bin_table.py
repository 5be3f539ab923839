"""The table that names a pair's distance bin without a search; csrc/binning.h reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semivario_kernels.geometry import EARTH_RADIUS_KM

MOST_CELLS = 2**16
MANTISSA_BITS = 23
FARTHEST_KM = 20_016.0  # half the circumference is 20,015.1 km


@dataclass(frozen=True, eq=False)
class BinTable:
    """Bin 0 lies below the first edge, bin k from edge k−1 to edge k, bin K+1 beyond the last one.

    Attributes:
        edges: (K+2,) float64 squared chords, the last one infinite.
        cells: (C,) int32: for every cell, a run of float32 distances in km that share their leading bits, a
            bin that no distance of the cell lies below.
        first_cell: the leading bits of the first cell.
        shift: how many trailing bits are left away.
        steps: how many bins above the cell's a distance may lie.
    """

    edges: npt.NDArray[np.float64]
    cells: npt.NDArray[np.int32]
    first_cell: int
    shift: int
    steps: int

    @property
    def bins(self) -> int:
        """K."""
        return len(self.edges) - 2


def make_bin_table(squared_chord_edges: npt.NDArray[np.float64]) -> BinTable:
    """The smallest table that leaves at most one comparison, or else the one that leaves the fewest."""
    smallest_km = _arc_km(squared_chord_edges[squared_chord_edges > 0][:1])[0] * (1 - 1e-5)
    best: BinTable | None = None
    for shift in range(MANTISSA_BITS, -1, -1):
        first, last = _bits(max(smallest_km, 1e-30)) >> shift, _bits(FARTHEST_KM) >> shift
        if last - first + 1 > MOST_CELLS:
            break
        table = _table(squared_chord_edges, first, last, shift)
        if best is None or table.steps < best.steps:
            best = table
        if table.steps <= 1:
            break
    assert best is not None
    return best


def _table(edges: npt.NDArray[np.float64], first: int, last: int, shift: int) -> BinTable:
    starts = (np.arange(first, last + 2, dtype=np.int64) << shift).astype(np.uint32).view(np.float32)
    km = starts.astype(np.float64)
    slack = np.maximum(1e-3, 1e-6 * km)  # the error of a float32 distance
    low, high = km[:-1] - slack[:-1], km[1:] + slack[1:]
    low[0] = 0.0  # all shorter distances fall into the first cell
    lowest = np.searchsorted(edges, _squared_chord(low), side="right")
    highest = np.searchsorted(edges, _squared_chord(high), side="right")
    return BinTable(
        np.append(edges, np.inf), lowest.astype(np.int32), first, shift, int((highest - lowest).max())
    )


def _bits(km: float) -> int:
    return int(np.float32(km).view(np.uint32))


def _arc_km(squared_chord: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    arc: npt.NDArray[np.float64] = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(np.sqrt(squared_chord) / 2, 1))
    return arc


def _squared_chord(km: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    half_angle = np.clip(km / (2 * EARTH_RADIUS_KM), 0, np.pi / 2)
    return 4 * np.square(np.sin(half_angle))
