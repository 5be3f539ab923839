"""Which tiles of sorted places may hold pairs within reach.

Consecutive places along the curve make tiles, each under a bounding cap. Two tiles whose caps lie further
apart than the reach hold no pair that counts. Wider caps around many tiles are looked at first, so that the
search costs little more than what it finds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor

TILE = 32  # places under one cap
WIDE = 32 * TILE  # places under one wide cap
ANGLE_SLACK = 1e-7  # radians; above the rounding of the caps
SEARCHED = 256 * TILE  # rows whose near tiles are searched for at once
COMPARED = 1 << 17  # pairs of caps at once: 1 MiB in float64


@dataclass
class Caps:
    """Bounding caps: every place of a tile lies within `radius` (radians) of its `center`, a unit vector."""

    center: Tensor
    radius: Tensor

    @classmethod
    def of(cls, axes: Tensor, size: int) -> Caps:
        """Caps of each `size` consecutive ones of (3, n) unit vectors; on the CPU, where the walk is led."""
        centers, radii = [], []
        for part in torch.split(axes, max(1, 2048 * TILE // size) * size, dim=1):
            whole = part.shape[1] // size * size
            for piece in (part[:, :whole].reshape(3, -1, size), part[:, whole:].reshape(3, 1, -1)):
                if piece.numel() == 0:
                    continue
                mean = piece.mean(dim=2)
                norm = mean.norm(dim=0)
                center = torch.where(norm > 1e-6, mean / norm.clamp(min=1e-6), piece[:, :, 0])
                chord = (piece - center[:, :, None]).square().sum(dim=0).amax(dim=1).sqrt()
                centers.append(center.T)
                radii.append(2 * torch.asin((chord / 2).clamp(max=1)))
        return cls(torch.cat(centers).cpu(), torch.cat(radii).cpu())

    def __getitem__(self, where: slice | Tensor) -> Caps:
        """Some of the caps."""
        return Caps(self.center[where], self.radius[where])

    def __len__(self) -> int:
        return len(self.radius)

    def meet(self, others: Caps, reach: float) -> Tensor:
        """(tiles, others) bool: whether two places under a cap and another may lie within `reach` radians."""
        found = torch.empty(len(self), len(others), dtype=torch.bool, device="cpu")
        two = torch.tensor(2.0, dtype=torch.float64, device="cpu")
        rows = max(1, COMPARED // max(1, len(others)))
        for first in range(0, len(self), rows):
            part = self[first : first + rows]
            squared_chord = torch.addmm(two, part.center, others.center.T, alpha=-2)
            # a chord is shorter than its arc: no tile is left out that should not be
            apart = part.radius[:, None] + (others.radius + (reach + ANGLE_SLACK))
            torch.le(squared_chord, apart.square_(), out=found[first : first + rows])
        return found


class TileCaps:
    """The caps of all tiles of (3, n) float64 unit vectors, and the wide ones."""

    def __init__(self, axes: Tensor) -> None:
        self.size = axes.shape[1]
        self.tiles, self.wide = Caps.of(axes, TILE), Caps.of(axes, WIDE)


@dataclass
class Plan:
    """What the row blocks of a walk cost.

    Attributes:
        pairs: that each of them meets.
        gathered: columns that all of them meet.
    """

    pairs: list[int]
    gathered: int = 0


class AllTiles:
    """All pairs of n rows with m columns; of one set, the `triangle` of its pairs."""

    def __init__(self, n: int, m: int, triangle: bool) -> None:
        self._n, self._m, self._triangle = n, m, triangle

    def met(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """What rows start … stop − 1 meet.

        Returns:
            The k column tiles, int64, rising; and for each the first row that it meets, counted from `start`,
            and the one after the last, (k, 2) int32.
        """
        first = start // TILE if self._triangle else 0
        tiles = torch.arange(first, -(-self._m // TILE), device="cpu")
        last = (tiles + 1) * TILE - start if self._triangle else torch.full_like(tiles, stop - start)
        return tiles, torch.stack([torch.zeros_like(last), last.clamp(max=stop - start)], dim=1).int()

    def plans(self, choices: tuple[int, ...]) -> dict[int, Plan]:
        """The plans for blocks of so many rows."""
        return {block_rows: self._plan(block_rows) for block_rows in choices}

    def _plan(self, block_rows: int) -> Plan:
        plan = Plan([])
        for start in range(0, self._n, block_rows):
            size = min(block_rows, self._n - start)
            met = self._m - start if self._triangle else self._m
            plan.pairs.append(size * met - (size * (size + 1) // 2 if self._triangle else 0))
            plan.gathered += met
        return plan


class NearTiles:
    """The pairs of rows and columns that may lie within `reach` radians; of one set their `triangle`."""

    def __init__(self, rows: TileCaps, columns: TileCaps, reach: float, triangle: bool) -> None:
        self._rows, self._columns, self._reach, self._triangle = rows, columns, reach, triangle
        self._found: tuple[int, Tensor, Tensor] | None = None

    def met(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """As `AllTiles.met`; the tiles of the rows themselves are among them."""
        begin = start // SEARCHED * SEARCHED
        if self._found is None or self._found[0] != begin:
            self._found = begin, *self._search(begin)
        _, tiles, near = self._found
        near = near[(start - begin) // TILE : -(-(stop - begin) // TILE)]
        is_met = near.any(dim=0)
        first, last = _ranges(near[None, :, is_met])
        rows = torch.cat([first * TILE, last * TILE]).clamp(max=stop - start)
        return tiles[is_met], rows.T.int().contiguous()

    def plans(self, choices: tuple[int, ...]) -> dict[int, Plan]:
        """As `AllTiles.plans`; SEARCHED rows are whole blocks of any choice."""
        plans = {block_rows: Plan([]) for block_rows in choices}
        for start in range(0, self._rows.size, SEARCHED):
            tiles, near = self._search(start)
            columns = (self._columns.size - tiles * TILE).clamp(max=TILE)
            for block_rows, plan in plans.items():
                self._extend(plan, block_rows, start, near, columns)
        return plans

    def _search(self, start: int) -> tuple[Tensor, Tensor]:
        """The k tiles that SEARCHED rows from `start` on meet, and the tiles of rows that do, (·, k) bool."""
        first, last = start // TILE, -(-min(start + SEARCHED, self._rows.size) // TILE)
        per = WIDE // TILE
        wide = self._rows.wide[first // per : -(-last // per)].meet(self._columns.wide, self._reach)
        tiles = (wide.any(dim=0).nonzero() * per + torch.arange(per, device="cpu")).reshape(-1)
        tiles = tiles[tiles < len(self._columns.tiles)]
        if self._triangle:
            tiles = tiles[tiles >= first]
        near = self._rows.tiles[first:last].meet(self._columns.tiles[tiles], self._reach)
        if self._triangle:
            near &= torch.arange(first, last, device="cpu")[:, None] <= tiles
        return tiles, near

    def _extend(self, plan: Plan, block_rows: int, start: int, near: Tensor, columns: Tensor) -> None:
        per = block_rows // TILE
        blocks = torch.nn.functional.pad(near, (0, 0, 0, -len(near) % per)).view(-1, per, len(columns))
        starts = start + torch.arange(len(blocks), device="cpu") * block_rows
        sizes = (self._rows.size - starts).clamp(max=block_rows)
        first, last = _ranges(blocks)
        rows = torch.minimum(last * TILE, sizes[:, None]) - first * TILE
        met = blocks.any(dim=1) * columns
        pairs = (rows * met).sum(dim=1)
        if self._triangle:  # tiles on the diagonal are met whole, and about half of them counts
            ragged = sizes % TILE
            pairs -= (sizes // TILE * (TILE * (TILE + 1)) + ragged * (ragged + 1)) // 2
        plan.pairs += pairs.tolist()
        plan.gathered += int(met.sum())


def _ranges(near: Tensor) -> tuple[Tensor, Tensor]:
    """The first true row of every column and the one after the last, (b, k) int64, of (b, rows, k) bool."""
    rows = near.shape[1]
    ahead = torch.arange(1, rows + 1, dtype=torch.int16, device="cpu")[:, None]
    first, last = (near * ahead.flip(0)).amax(dim=1), (near * ahead).amax(dim=1)
    return rows - first.long(), last.long()
