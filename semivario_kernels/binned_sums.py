"""What the backends of the binned semivariance are asked for, and the sums they return."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

AddUp = Callable[[torch.Tensor], torch.Tensor]

BIN_SUMS = 4  # count, Σh, Σd, Σd²
MOST_BLOCKS = 32
MOST_BLOCK_BYTES = 13 * 2**19  # of the sums between blocks, per thread: 8 blocks with 3,142 bins
HISTOGRAM_CELLS = 8192  # of d in [0, 2], for the median: it is right to half a cell, 1.2e-4
MOST_HISTOGRAM_BYTES = 8 * 2**20  # per thread


@dataclass(frozen=True)
class BinnedRequest:
    """Which sums are wanted.

    Attributes:
        chord_edges: (K+1,) float64 squared chords on the CPU, rising; infinite beyond half a turn.
        blocks: number of spatial blocks of places.
        wants_quarters: whether to sum d^¼.
        histogram_cells: cells of the histogram of d per bin, 0 for none.
    """

    chord_edges: torch.Tensor
    blocks: int
    wants_quarters: bool = False
    histogram_cells: int = 0

    @property
    def bins(self) -> int:
        """K."""
        return len(self.chord_edges) - 1

    def between(self, first: int, last: int) -> BinnedRequest:
        """The same for the bins first … last−1."""
        return replace(self, chord_edges=self.chord_edges[first : last + 1])


def as_it_is(sums: torch.Tensor) -> torch.Tensor:
    """The sums of one process alone; see `PairBinning.totals`."""
    return sums


def affordable_blocks(places: int, bins: int) -> int:
    """Number of spatial blocks: at least 8 places each, and bounded memory."""
    return max(1, min(MOST_BLOCKS, places // 8, math.isqrt(MOST_BLOCK_BYTES // (8 * BIN_SUMS * (bins + 2)))))


def affordable_cells(bins: int) -> int:
    """Number of the histogram's cells: a power of two, and bounded memory."""
    most = MOST_HISTOGRAM_BYTES // (8 * (bins + 2))
    return min(HISTOGRAM_CELLS, 1 << max(4, most.bit_length() - 1))


@dataclass
class BinnedSums:
    """Sums over pairs per bin; bins 0 and K+1 lie outside the edges.

    Attributes:
        sums: (G, G, K+2, 4) float64 count, Σh, Σd, Σd² between spatial blocks; counts below 2⁵³ are exact.
        duplicates: () int64 pairs at distance 0.
        quarter_sums: (K+2,) float64 Σd^¼, or None.
        histogram: (K+2, cells) int64 counts of d, or None.
    """

    sums: torch.Tensor
    duplicates: torch.Tensor
    quarter_sums: torch.Tensor | None = None
    histogram: torch.Tensor | None = None

    @classmethod
    def empty(cls, request: BinnedRequest, device: torch.device | str = "cpu") -> BinnedSums:
        """All zero."""
        bins, blocks, cells = request.bins + 2, request.blocks, request.histogram_cells

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            sums=zeros(blocks, blocks, bins, BIN_SUMS),
            duplicates=zeros(dtype=torch.int64),
            quarter_sums=zeros(bins) if request.wants_quarters else None,
            histogram=zeros(bins, cells, dtype=torch.int64) if cells else None,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The sums that there are, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
