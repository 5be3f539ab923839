"""The walk over the pairs of places that every backend's binned semivariance shares.

Places are sorted once along a space-filling curve. A row block meets the columns that may lie within reach:

    dot = v_rows·u_columnsᵀ             into a reused buffer (`binned_products.py`)
    binning.add(rows, columns, dot)     distance → bin → (count, Σh, Σd, Σd²), one pass

Of one set of places the upper triangle is walked, each pair once. With a last edge below half a turn, tiles
of 64 sorted places carry a bounding cap, and the tiles whose caps lie further apart than the last edge are
neither gathered nor multiplied: the cost grows with the pairs that count. Places belong to spatial blocks,
runs of the curve, between which the sums are kept apart (`spatial_blocks.py`).

Memory: O(N) for the order, positions and norms, and the buffers of one tile; embeddings are gathered row by
row, so that memory-mapped ones are read where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from semivario_kernels.backends.binned_products import BlockProducts
from semivario_kernels.binned_sums import AddUp, BinnedSums, as_it_is

Tensor = torch.Tensor

TILE = 64  # sorted places under one bounding cap
DIAGONAL_ROWS = 256  # of a row block against itself, so that little of the lower triangle is multiplied
GATHERED_ROWS = 100  # gathering a column costs about as much as multiplying it with so many rows
ANGLE_SLACK = 1e-7  # radians; above the rounding of the caps


@dataclass
class Side:
    """One side of a tile: n places in the order of the curve.

    Attributes:
        axes: (3, n) float64 unit vectors.
        inverse_norm: (n,) float64 1/|v|.
        block: (n,) int32, rising.
    """

    axes: Tensor
    inverse_norm: Tensor
    block: Tensor


class PairBinning(Protocol):
    """What a backend makes of the product tiles.

    Attributes:
        row_blocks: numbers of rows a block may have, rising multiples of TILE; the cheapest is taken.
        column_batch: how many columns meet a row block at once.
        products: makes the tiles, in float32 or float64.
    """

    row_blocks: tuple[int, ...]
    column_batch: int
    products: BlockProducts

    def totals(self, add_up: AddUp = as_it_is) -> BinnedSums:
        """The sums so far, in one copy on the CPU; `add_up` takes whole units over the ranks before."""

    def start_from(self, totals: BinnedSums) -> None:
        """Go on from the sums of an earlier run."""

    def add(self, rows: Side, columns: Side, dot: Tensor, diagonal: bool) -> None:
        """Bin the pairs of a tile; with `diagonal` only columns j > i count."""


class Places:
    """Places with an image in the order of the curve.

    Args:
        embeddings: (N, E), gathered row by row.
        index: (n,) int64 rows of it, in the order of the curve.
        axes: (3, n) float64 unit vectors.
        inverse_norm: (n,) float64 1/|v|.
        block: (n,) int32 spatial blocks, rising.
    """

    def __init__(
        self, embeddings: Tensor, index: Tensor, axes: Tensor, inverse_norm: Tensor, block: Tensor
    ) -> None:
        self.embeddings, self.index, self.axes = embeddings, index, axes
        self.inverse_norm, self.block = inverse_norm, block
        self.caps = _bounding_caps(axes)

    def __len__(self) -> int:
        return len(self.index)

    def side(self, where: slice | Tensor) -> Side:
        """Positions, norms and blocks of sorted places."""
        return Side(self.axes[:, where], self.inverse_norm[where], self.block[where])

    def subset(self, kept: Tensor) -> Places:
        """The places where `kept` (n,) is true."""
        return Places(
            self.embeddings,
            self.index[kept],
            self.axes[:, kept],
            self.inverse_norm[kept],
            self.block[kept],
        )


@dataclass
class Caps:
    """Bounding caps: every place of a tile lies within `radius` (radians) of its `center`, a unit vector."""

    center: Tensor
    radius: Tensor


def _bounding_caps(axes: Tensor) -> Caps:
    """Caps of consecutive tiles of (3, n) unit vectors."""
    centers, radii = [], []
    for part in torch.split(axes, 1024 * TILE, dim=1):
        whole = part.shape[1] // TILE * TILE
        for piece in (part[:, :whole].reshape(3, -1, TILE), part[:, whole:].reshape(3, 1, -1)):
            if piece.numel() == 0:
                continue
            mean = piece.mean(dim=2)
            norm = mean.norm(dim=0)
            center = torch.where(norm > 1e-6, mean / norm.clamp(min=1e-6), piece[:, :, 0])
            chord = (piece - center[:, :, None]).square().sum(dim=0).amax(dim=1).sqrt()
            centers.append(center.T)
            radii.append(2 * torch.asin((chord / 2).clamp(max=1)))
    return Caps(torch.cat(centers).cpu(), torch.cat(radii).cpu())  # where the walk is steered


class Walk:
    """The row blocks of one walk, and what each of them meets.

    Args:
        places: one set, for its pairs with each other; or two, the rows' and the columns'.
        reach: squared chord of the last edge; pairs further apart need not be met.
        binning: what bins the tiles.
        block_rows: rows of a block, of a walk that goes on; the cheapest number by default.

    Attributes:
        pairs: number of pairs that each row block multiplies.
    """

    def __init__(
        self, places: list[Places], reach: float, binning: PairBinning, block_rows: int | None = None
    ) -> None:
        self.rows, self.columns = places[0], places[-1]
        self.triangle = len(places) == 1
        self.binning = binning
        self._reach = 2 * math.asin(min(math.sqrt(reach) / 2, 1.0)) if reach < 4 else math.pi
        self.block_rows, self.pairs = self._best_blocks(block_rows)

    @property
    def starts(self) -> range:
        """First row of every row block."""
        return range(0, len(self.rows), self.block_rows)

    def run_block(self, number: int) -> None:
        """Multiply and bin a row block with everything it meets."""
        binning, start = self.binning, self.starts[number]
        products, stop = binning.products, min(start + self.block_rows, len(self.rows))
        products.take_rows(self.rows.embeddings, self.rows.index[start:stop])
        if self.triangle:
            for first in range(start, stop, DIAGONAL_ROWS):
                last = min(first + DIAGONAL_ROWS, stop)
                dot = products.with_own(first - start, last - start)
                binning.add(self.rows.side(slice(first, last)), self.rows.side(slice(first, stop)), dot, True)
        side = self.rows.side(slice(start, stop))
        for where in self._column_batches(start):
            dot = products.with_columns(self.columns.embeddings, self.columns.index[where])
            binning.add(side, self.columns.side(where), dot, False)

    def _candidates(self, start: int, block_rows: int) -> Tensor:
        """The column tiles that a row block meets beside its own: those within reach of one of its tiles."""
        caps, others = self.rows.caps, self.columns.caps
        own = slice(start // TILE, -(-min(start + block_rows, len(self.rows)) // TILE))
        first = own.stop if self.triangle else 0
        if self._reach >= math.pi:
            return torch.arange(first, len(others.radius))
        squared_chord = 2 - 2 * caps.center[own] @ others.center[first:].T
        # a chord is shorter than its arc: no tile is left out that should not be
        apart = caps.radius[own, None] + others.radius[None, first:] + (self._reach + ANGLE_SLACK)
        return first + (squared_chord <= apart.square()).any(dim=0).nonzero()[:, 0]

    def _column_batches(self, start: int) -> Iterator[slice | Tensor]:
        tiles = self._candidates(start, self.block_rows)
        n = len(self.columns)
        per_batch = self.binning.column_batch // TILE
        for start_tile in range(0, len(tiles), per_batch):
            part = tiles[start_tile : start_tile + per_batch]
            first, last = int(part[0]), int(part[-1])
            if last - first + 1 == len(part):
                yield slice(first * TILE, min((last + 1) * TILE, n))
            else:
                places = (part[:, None] * TILE + torch.arange(TILE)).reshape(-1)
                yield places[places < n].to(self.columns.index.device)

    def _pairs(self, start: int, block_rows: int) -> int:
        """Pairs that a row block multiplies."""
        size = min(block_rows, len(self.rows) - start)
        tiles = self._candidates(start, block_rows)
        columns = len(tiles) * TILE
        if len(tiles) and int(tiles[-1]) == len(self.columns.caps.radius) - 1:
            columns -= -len(self.columns) % TILE
        return size * columns + (size * (size - 1) // 2 if self.triangle else 0)

    def _best_blocks(self, wanted: int | None) -> tuple[int, list[int]]:
        """Rows of a block, and the pairs of each: small ones leave more out, large ones gather less."""
        choices = self.binning.row_blocks if self._reach < math.pi else self.binning.row_blocks[-1:]
        choices = choices if wanted is None else (wanted,)
        pairs = {
            block_rows: [self._pairs(start, block_rows) for start in range(0, len(self.rows), block_rows)]
            for block_rows in choices
        }
        best = min(choices, key=lambda block_rows: sum(pairs[block_rows]) * (1 + GATHERED_ROWS / block_rows))
        return best, pairs[best]
