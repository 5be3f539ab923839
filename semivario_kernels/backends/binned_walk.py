"""The walk over the pairs of places that every backend's binned semivariance shares.

Places are sorted once along a space-filling curve. A row block meets the columns that may lie within reach:

    dot = v_rows·u_columnsᵀ             into a reused buffer (`binned_products.py`)
    binning.add(rows, columns, dot)     distance → bin → (count, Σh, Σd, Σd²), one pass

Of one set of places the upper triangle is walked, each pair once. With a last edge below half a turn, tiles
of sorted places carry a bounding cap (`near_tiles.py`), and the tiles whose caps lie further apart than the
last edge are neither gathered nor multiplied: the cost grows with the pairs that count. Products and binnings
that can leave out rows of a block are told which rows each tile meets. Places belong to spatial blocks, runs
of the curve, between which the sums are kept apart (`spatial_blocks.py`).

Memory: O(N) for the order, positions and norms, and the buffers of one tile; embeddings are gathered row by
row, so that memory-mapped ones are read where they lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from semivario_kernels.backends.binned_products import BlockProducts
from semivario_kernels.backends.near_tiles import TILE, AllTiles, NearTiles, Plan, TileCaps
from semivario_kernels.binned_sums import AddUp, BinnedSums, as_it_is

Tensor = torch.Tensor

DIAGONAL_ROWS = 256  # of a row block against itself, so that little of the lower triangle is multiplied
MOST_BATCHES = 4  # met at once, where columns are not copied and the rows are few: fewer calls
GATHERED_ROWS = 100  # gathering a column costs about as much as multiplying it with so many rows


@dataclass
class Side:
    """One side of a tile: n places in the order of the curve.

    Attributes:
        axes: (3, n) float64 unit vectors.
        inverse_norm: (n,) float64 1/|v|.
        block: (n,) int32, rising.
        met_rows: of columns: for every TILE of them the first row that they meet and the one after the last,
            (tiles, 2) int32 in whole tiles of rows; None where they meet all. Pairs with other rows lie
            beyond the last edge, or left of the diagonal, and may be left out.
    """

    axes: Tensor
    inverse_norm: Tensor
    block: Tensor
    met_rows: Tensor | None = None


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

    @cached_property
    def caps(self) -> TileCaps:
        """Of the places' tiles; only a walk of limited reach asks for them."""
        return TileCaps(self.axes)

    def __len__(self) -> int:
        return len(self.index)

    def side(self, where: slice | Tensor, met_rows: Tensor | None = None) -> Side:
        """Positions, norms and blocks of sorted places."""
        return Side(self.axes[:, where], self.inverse_norm[where], self.block[where], met_rows)

    def subset(self, kept: Tensor) -> Places:
        """The places where `kept` (n,) is true."""
        return Places(
            self.embeddings,
            self.index[kept],
            self.axes[:, kept],
            self.inverse_norm[kept],
            self.block[kept],
        )


class Walk:
    """The row blocks of one walk, and what each of them meets.

    Args:
        places: one set, for its pairs with each other; or two, the rows' and the columns'.
        reach: squared chord of the last edge; pairs further apart need not be met.
        binning: what bins the tiles.
        block_rows: rows of a block, of a walk that goes on; the cheapest number by default.

    Attributes:
        pairs: number of pairs that each row block meets.
    """

    def __init__(
        self, places: list[Places], reach: float, binning: PairBinning, block_rows: int | None = None
    ) -> None:
        self.rows, self.columns = places[0], places[-1]
        self.triangle = len(places) == 1
        self.binning = binning
        self._tiles: AllTiles | NearTiles
        if reach < 4:
            arc = 2 * math.asin(math.sqrt(reach) / 2)
            self._tiles = NearTiles(self.rows.caps, self.columns.caps, arc, self.triangle)
            choices = binning.row_blocks
        else:
            self._tiles = AllTiles(len(self.rows), len(self.columns), self.triangle)
            choices = binning.row_blocks[-1:]
        plans = self._tiles.plans(choices if block_rows is None else (block_rows,))
        # small blocks leave more out, large ones gather less
        self.block_rows = min(plans, key=lambda rows: self._cost(rows, plans[rows]))
        self.pairs = plans[self.block_rows].pairs
        self._column_batch, self._diagonal_rows = binning.column_batch, DIAGONAL_ROWS
        if binning.products.in_place:  # tiles of about one size
            self._column_batch *= min(MOST_BATCHES, max(1, binning.row_blocks[-1] // self.block_rows))
            self._diagonal_rows = self._column_batch

    @property
    def starts(self) -> range:
        """First row of every row block."""
        return range(0, len(self.rows), self.block_rows)

    def run_block(self, number: int) -> None:
        """Multiply and bin a row block with everything it meets."""
        start = self.starts[number]
        stop = min(start + self.block_rows, len(self.rows))
        tiles, met_rows = self._tiles.met(start, stop)
        self.binning.products.take_rows(self.rows.embeddings, self.rows.index[start:stop])
        if self.triangle:
            own = -(-(stop - start) // TILE)  # the first tiles met
            self._run_diagonal(start, stop, met_rows[:own])
            tiles, met_rows = tiles[own:], met_rows[own:]
        side = self.rows.side(slice(start, stop))
        per_batch = self._column_batch // TILE
        for first in range(0, len(tiles), per_batch):
            batch = slice(first, first + per_batch)
            where = self._places_of(tiles[batch])
            columns = self.columns.side(where, met_rows[batch])
            index = self.columns.index[where]
            dot = self.binning.products.with_columns(self.columns.embeddings, index, met_rows[batch])
            self.binning.add(side, columns, dot, False)

    def _run_diagonal(self, start: int, stop: int, met_rows: Tensor) -> None:
        for first in range(start, stop, self._diagonal_rows):
            last = min(first + self._diagonal_rows, stop)
            met = (met_rows[(first - start) // TILE :] - (first - start)).clamp_(0, last - first)
            dot = self.binning.products.with_own(first - start, last - start, met)
            columns = self.rows.side(slice(first, stop), met)
            self.binning.add(self.rows.side(slice(first, last)), columns, dot, True)

    def _places_of(self, tiles: Tensor) -> slice | Tensor:
        first, last, n = int(tiles[0]), int(tiles[-1]), len(self.columns)
        if last - first + 1 == len(tiles):
            return slice(first * TILE, min((last + 1) * TILE, n))
        places = (tiles[:, None] * TILE + torch.arange(TILE, device="cpu")).reshape(-1)
        return places[places < n].to(self.columns.index.device)

    def _cost(self, block_rows: int, plan: Plan) -> float:
        in_place = self.binning.products.in_place
        multiplied = sum(plan.pairs) if in_place else plan.gathered * block_rows
        return multiplied + plan.gathered * GATHERED_ROWS
