"""The walk over the N×M pairs, tile by tile, that the tiled and the native backend share.

A row block of x̂ (r rows) meets the gallery in column tiles (c columns):

    dot = x̂·yᵀ, vu = v̂·uᵀ          vendor's BLAS into reused buffers
    l   = epilogue.forward(dot, vu)    distance → γ → policy → logits, online row sums, in place
    A   = epilogue.gradient(l)         ∂loss/∂cos over |y_j|, in place
    Σ_j A_ij·y_j,  Σ_i A_ij·x̂_i       vendor's BLAS again

Two ways. *Strips*, for one upstream number (mean, sum): the logits of r rows and all M columns are kept, the
gradient is made from them at once, and nothing is computed twice: 2(D+E) + 4D FLOPs a pair. *Two passes*, for
per-row upstream gradients, for column sums that must be complete first (symmetric) and for galleries too long
for a strip: the sums in one pass, the gradient in another that computes the logits again.

The gradient, once: with ŷ = y/|y|, cos_ij = ⟨x̂_i, ŷ_j⟩, l_ij = a_ij·s·cos_ij + b_ij and g_ij = ∂loss/∂l_ij =
w_i·(softmax_ij − T_ij), put A_ij = g_ij·a_ij/|y_j|. Then

    gx_i = Σ_j A_ij·y_j,    ∂loss/∂x_i = s·(gx_i − x̂_i⟨x̂_i, gx_i⟩)/|x_i|,    ∂loss/∂s = Σ_i ⟨x̂_i, gx_i⟩
    gy_j = Σ_i A_ij·x̂_i,    ∂loss/∂y_j = s·(gy_j − ŷ_j⟨ŷ_j, gy_j⟩)

(the |y_j| of the normalisation's Jacobian cancels A's), without the projections where features are taken as
they are. Norms are vectors: no input is normalised, cast or copied as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from semivario_kernels.dissimilarity import arithmetic_dtype
from semivario_kernels.geometry import unit_vectors

if TYPE_CHECKING:
    from semivario_kernels.problem import InfoNCEProblem

Tensor = torch.Tensor

WORKSPACE_MB = 64
ROW_BLOCK = 1024
COLUMN_TILE = 1024
THINNEST_STRIP = 32  # below, reading and writing ∂y once per strip costs more than computing the logits twice
SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize
STATISTICS = 6  # max, Σexp(l − max), Σl, Σf, Σf·l, l of the positive


@dataclass
class Side:
    """What the gradient reads of every row (or column): T = hard·(1[positive] + f) + smooth."""

    log_sum_exp: Tensor
    weight: Tensor
    hard: Tensor
    smooth: Tensor


class Epilogue(Protocol):
    """The arithmetic between the matrix products, on one tile of rows × columns.

    `dot` (rows, columns) comes as x̂_i·y_j, −inf where the pair is excluded, and becomes the logits in place;
    `vu` is v̂_i·u_j or None; `extra` takes what the gradient needs again: a for the policy "penalty", f for
    "rectify". `statistics` are (6, N) float64 sums, starting at −inf and zeros; None leaves them out.
    """

    def forward(
        self,
        rows: slice,
        columns: slice,
        dot: Tensor,
        vu: Tensor | None,
        extra: Tensor | None,
        statistics: Tensor | None,
    ) -> None:
        """Turn `dot` into logits and add to the rows' sums."""

    def column_statistics(
        self, rows: slice, columns: slice, logits: Tensor, soft: Tensor | None, statistics: Tensor
    ) -> None:
        """Add a tile of logits to the columns' sums, (6, M)."""

    def gradient(
        self,
        rows: slice,
        columns: slice,
        logits: Tensor,
        extra: Tensor | None,
        row_side: Side,
        column_side: Side | None,
    ) -> None:
        """Turn logits into A."""


class Prepared:
    """The O(N+M) vectors of a problem, in the arithmetic's dtype."""

    def __init__(self, problem: InfoNCEProblem) -> None:
        self.problem = problem
        self.dtype = arithmetic_dtype(problem.x)
        self.n, self.m = problem.x.shape[0], problem.y.shape[0]
        self.scale = float(problem.logit_scale)
        self.inverse_x = self._inverse_norms(problem.x) if problem.normalize else None
        self.inverse_y = (
            self._inverse_norms(problem.y)
            if problem.normalize
            else problem.y.new_ones(self.m, dtype=self.dtype)
        )
        self.targets = problem.targets.clamp(0, self.m - 1)
        self.p = self.q = None
        if problem.policy.reads_positions:
            assert problem.query_latlon is not None
            assert problem.gallery_latlon is not None
            self.p = unit_vectors(problem.query_latlon).to(self.dtype).contiguous()
            self.q = unit_vectors(problem.gallery_latlon).to(self.dtype).contiguous()
        self.inverse_v = self.inverse_u = None
        if problem.v is not None and problem.u is not None:
            self.inverse_v, self.inverse_u = (
                torch.where(norms > 0, 1 / norms.clamp(min=SMALLEST_NORM), 0.0)
                for norms in (self._norms(problem.v), self._norms(problem.u))
            )

    def _norms(self, matrix: Tensor) -> Tensor:
        blocks = [block.to(self.dtype).norm(dim=1) for block in torch.split(matrix, ROW_BLOCK)]
        return torch.cat(blocks)

    def _inverse_norms(self, matrix: Tensor) -> Tensor:
        return 1 / self._norms(matrix).clamp(min=SMALLEST_NORM)

    @property
    def keeps_extra(self) -> bool:
        """Whether the gradient needs a or f again."""
        return self.problem.policy.kind in ("penalty", "rectify")

    def live_counts(self) -> tuple[Tensor, Tensor]:
        """Number of live entries per row (N,) and per column (M,)."""
        exclude = self.problem.exclude
        rows = torch.full((self.n,), self.m, device=self.targets.device)
        columns = torch.full((self.m,), self.n, device=self.targets.device)
        if exclude is not None and exclude.shape[1]:
            ordered = exclude.sort(dim=1).values
            counted = ordered >= 0
            counted[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
            rows = rows - counted.sum(dim=1)
            columns = columns - torch.bincount(ordered[counted], minlength=self.m)
        return rows, columns


@dataclass
class Result:
    """Losses (N,), and gradients where asked for and already made; the sums a later gradient pass needs."""

    losses: Tensor
    row_statistics: Tensor
    column_statistics: Tensor | None
    dx: Tensor | None = None
    dy: Tensor | None = None
    ds: Tensor | None = None


class TileDriver:
    """One loss on its way through the tiles.

    Args:
        problem: the checked arguments.
        make_epilogue: makes the arithmetic from the prepared vectors.
        workspace_mb: bound on the logits' buffers.
    """

    def __init__(
        self,
        problem: InfoNCEProblem,
        make_epilogue: Callable[[Prepared], Epilogue],
        workspace_mb: int | None,
    ) -> None:
        self.problem = problem
        self.prepared = Prepared(problem)
        self.live = self.prepared.live_counts()
        self.epilogue = make_epilogue(self.prepared)
        prepared = self.prepared
        itemsize = torch.finfo(prepared.dtype).bits // 8
        budget = (workspace_mb or WORKSPACE_MB) * 2**20 // itemsize
        self.tile = min(COLUMN_TILE, prepared.m)
        strips = 2 if prepared.keeps_extra else 1
        widths = problem.x.shape[1] * 2 + (0 if problem.v is None else problem.v.shape[1])
        fixed = self.tile * (problem.x.shape[1] + (0 if problem.u is None else problem.u.shape[1]))
        self.strip_rows = min(
            ROW_BLOCK, prepared.n, (budget - fixed) // (strips * prepared.m + self.tile + widths)
        )
        thin = min(THINNEST_STRIP, prepared.n)
        self.fits_strips = not problem.symmetric and self.strip_rows >= thin
        rows = min(ROW_BLOCK, prepared.n, (budget - fixed) // ((strips + 1) * self.tile + widths))
        self.block_rows = max(1, rows)

    def run(self, weights: Tensor | None, need_dx: bool, need_dy: bool, need_ds: bool) -> Result:
        """Compute the losses; with `weights` w_i = ∂result/∂loss_i, (N,), also the gradients asked for."""
        wants_gradient = weights is not None and (need_dx or need_dy or need_ds)
        result = Result(*self._empty_statistics())
        if wants_gradient and self.fits_strips:
            assert weights is not None
            gradient = GradientSums(self, need_dx, need_dy)
            blocks = Blocks(self, self.strip_rows, self.prepared.m)
            for rows in self._row_blocks(self.strip_rows):
                self._strip(rows, weights, result, blocks, gradient)
            result.losses = self._losses(result)
            result.dx, result.dy, result.ds = gradient.finish(need_ds)
            return result
        blocks = Blocks(self, self.block_rows, self.tile)
        for rows in self._row_blocks(self.block_rows):
            blocks.take_rows(rows)
            for columns in self._column_tiles():
                logits, extra = blocks.logits(columns, result.row_statistics)
                if result.column_statistics is not None:
                    soft = extra if self.problem.policy.kind == "rectify" else None
                    self.epilogue.column_statistics(rows, columns, logits, soft, result.column_statistics)
        result.losses = self._losses(result)
        if wants_gradient:
            assert weights is not None
            result.dx, result.dy, result.ds = self.gradient(
                weights, result.row_statistics, result.column_statistics, need_dx, need_dy, need_ds
            )
        return result

    def gradient(
        self,
        weights: Tensor,
        row_statistics: Tensor,
        column_statistics: Tensor | None,
        need_dx: bool,
        need_dy: bool,
        need_ds: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of Σ w_i·loss_i from the sums of an earlier run, computing the logits again."""
        gradient = GradientSums(self, need_dx, need_dy)
        row_side, column_side = self._sides(weights, row_statistics, column_statistics)
        blocks = Blocks(self, self.block_rows, self.tile)
        for rows in self._row_blocks(self.block_rows):
            unit_x = blocks.take_rows(rows)
            gradient.take_rows(rows, unit_x)
            for columns in self._column_tiles():
                logits, extra = blocks.logits(columns, None)
                self.epilogue.gradient(rows, columns, logits, extra, row_side, column_side)
                gradient.add(columns, logits, blocks.y_tile(columns))
            gradient.finish_rows()
        return gradient.finish(need_ds)

    def _strip(
        self, rows: slice, weights: Tensor, result: Result, blocks: Blocks, gradient: GradientSums
    ) -> None:
        gradient.take_rows(rows, blocks.take_rows(rows))
        for columns in self._column_tiles():
            blocks.logits(columns, result.row_statistics)
        side, _ = self._sides(weights, result.row_statistics, None)
        for columns in self._column_tiles():
            logits, extra = blocks.tile(columns)
            self.epilogue.gradient(rows, columns, logits, extra, side, None)
            if not blocks.takes_y_as_it_is:
                gradient.add(columns, logits, blocks.y_tile(columns))
        if blocks.takes_y_as_it_is:
            everything = slice(0, self.prepared.m)
            gradient.add(everything, blocks.tile(everything)[0], self.problem.y.detach())
        gradient.finish_rows()

    def _empty_statistics(self) -> tuple[Tensor, Tensor, Tensor | None]:
        device = self.problem.x.device
        rows = torch.zeros(STATISTICS, self.prepared.n, dtype=torch.float64, device=device)
        rows[0] = -math.inf
        columns = None
        if self.problem.symmetric:
            columns = torch.zeros(STATISTICS, self.prepared.m, dtype=torch.float64, device=device)
            columns[0] = -math.inf
        return rows.new_empty(0), rows, columns

    def _row_blocks(self, size: int) -> Iterator[slice]:
        for start in range(0, self.prepared.n, size):
            yield slice(start, min(start + size, self.prepared.n))

    def _column_tiles(self) -> Iterator[slice]:
        for start in range(0, self.prepared.m, self.tile):
            yield slice(start, min(start + self.tile, self.prepared.m))

    def _targets_of(self, statistics: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(log-sum-exp, hard, smooth) of every row or column, float64."""
        epsilon = self.problem.label_smoothing
        return (
            statistics[0] + statistics[1].log(),
            (1 - epsilon) / (1 + statistics[3]),
            epsilon / live.double(),
        )

    def _side_losses(self, statistics: Tensor, live: Tensor) -> Tensor:
        log_sum_exp, hard, smooth = self._targets_of(statistics, live)
        losses = log_sum_exp - hard * (statistics[5] + statistics[4])
        return losses - smooth * statistics[2] if self.problem.label_smoothing else losses

    def _losses(self, result: Result) -> Tensor:
        live_rows, live_columns = self.live
        losses = self._side_losses(result.row_statistics, live_rows)
        targets = self.prepared.targets
        if result.column_statistics is not None:
            columns = self._side_losses(result.column_statistics, live_columns)
            losses = (losses + columns[targets]) / 2
        losses = torch.where(targets == self.problem.targets, losses, torch.nan)
        return losses.to(self.prepared.dtype)

    def _sides(
        self, weights: Tensor, row_statistics: Tensor, column_statistics: Tensor | None
    ) -> tuple[Side, Side | None]:
        """What the gradient reads per row and per column."""
        dtype, live = self.prepared.dtype, self.live
        weights = weights.double() / (2 if self.problem.symmetric else 1)
        log_sum_exp, hard, smooth = self._targets_of(row_statistics, live[0])
        row_side = Side(*(t.to(dtype) for t in (log_sum_exp, weights, hard, smooth)))
        if column_statistics is None:
            return row_side, None
        of_column = torch.zeros(self.prepared.m, dtype=torch.float64, device=weights.device)
        of_column[self.prepared.targets] = weights
        log_sum_exp, hard, smooth = self._targets_of(column_statistics, live[1])
        return row_side, Side(*(t.to(dtype) for t in (log_sum_exp, of_column, hard, smooth)))


class Blocks:
    """The buffers of one row block: x̂, v̂, logits of `width` columns, the dissimilarity's product."""

    def __init__(self, driver: TileDriver, rows: int, width: int) -> None:
        self.driver, self.width = driver, width
        problem, prepared = driver.problem, driver.prepared
        self.y, self.u = problem.y.detach(), problem.u

        def buffer(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=prepared.dtype, device=problem.x.device)

        self._logits = buffer(rows, width)
        self._extra = buffer(rows, width) if prepared.keeps_extra else None
        self._vu = None if self.u is None else buffer(rows, driver.tile)
        self._unit_x = buffer(rows, problem.x.shape[1])
        self._unit_v = None if problem.v is None else buffer(rows, problem.v.shape[1])
        self._y_tile = None if _multiplies(self.y, prepared.dtype) else buffer(driver.tile, self.y.shape[1])
        self._u_tile = (
            None
            if self.u is None or _multiplies(self.u, prepared.dtype)
            else buffer(driver.tile, self.u.shape[1])
        )
        self.rows = slice(0, 0)

    @property
    def takes_y_as_it_is(self) -> bool:
        """Whether y enters the products without a cast or a copy."""
        return self._y_tile is None

    def take_rows(self, rows: slice) -> Tensor:
        """Load x̂ and v̂ of a row block; return x̂."""
        problem, prepared = self.driver.problem, self.driver.prepared
        self.rows, size = rows, rows.stop - rows.start
        unit_x = self._unit_x[:size].copy_(problem.x.detach()[rows])
        if prepared.inverse_x is not None:
            unit_x.mul_(prepared.inverse_x[rows, None])
        if self._unit_v is not None and problem.v is not None and prepared.inverse_v is not None:
            self._unit_v[:size].copy_(problem.v[rows]).mul_(prepared.inverse_v[rows, None])
        return unit_x

    def y_tile(self, columns: slice) -> Tensor:
        """y of a column tile, ready for the products."""
        return _ready(self.y, self._y_tile, columns)

    def tile(self, columns: slice) -> tuple[Tensor, Tensor | None]:
        """The logits' and the extra buffer of a column tile."""
        size = self.rows.stop - self.rows.start
        where = columns if self.width == self.driver.prepared.m else slice(0, columns.stop - columns.start)
        return self._logits[:size, where], None if self._extra is None else self._extra[:size, where]

    def logits(self, columns: slice, statistics: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute the logits of a column tile; returns them and a or f."""
        rows, size = self.rows, self.rows.stop - self.rows.start
        dot, extra = self.tile(columns)
        torch.mm(self._unit_x[:size], self.y_tile(columns).T, out=dot)
        vu = None
        if self.u is not None and self._vu is not None and self._unit_v is not None:
            vu = self._vu[:size, : columns.stop - columns.start]
            torch.mm(self._unit_v[:size], _ready(self.u, self._u_tile, columns).T, out=vu)
        exclude = self.driver.problem.exclude
        if exclude is not None:
            block = exclude[rows]
            row, k = ((block >= columns.start) & (block < columns.stop)).nonzero(as_tuple=True)
            dot[row, block[row, k] - columns.start] = -math.inf
        self.driver.epilogue.forward(rows, columns, dot, vu, extra, statistics)
        return dot, extra


class GradientSums:
    """gx of the current row block, gy of the whole gallery and the gradients made of them."""

    def __init__(self, driver: TileDriver, need_dx: bool, need_dy: bool) -> None:
        self.driver = driver
        problem, prepared = driver.problem, driver.prepared
        x, y = problem.x, problem.y
        self.dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_dx else None
        # summed in float32 and cast only at the end where the features are shorter
        self.gy = torch.zeros(y.shape, dtype=prepared.dtype, device=y.device) if need_dy else None
        self.ds = torch.zeros((), dtype=torch.float64, device=x.device)
        self._gx = torch.empty(0)
        self._unit_x = torch.empty(0)
        self.rows = slice(0, 0)

    def take_rows(self, rows: slice, unit_x: Tensor) -> None:
        """Start a row block."""
        self.rows, self._unit_x = rows, unit_x
        if self._gx.shape != unit_x.shape:
            self._gx = torch.empty_like(unit_x)
        self._gx.zero_()

    def add(self, columns: slice, a: Tensor, y: Tensor) -> None:
        """Add the products of a tile of A."""
        self._gx.addmm_(a, y)
        if self.gy is not None:
            self.gy[columns].addmm_(a.T, self._unit_x)

    def finish_rows(self) -> None:
        """Turn gx of the row block into ∂x and ∂s."""
        problem, prepared = self.driver.problem, self.driver.prepared
        along = (self._unit_x * self._gx).sum(dim=1, keepdim=True)
        self.ds += along.sum(dtype=torch.float64)
        if self.dx is not None:
            if prepared.inverse_x is not None:
                self._gx.sub_(self._unit_x * along).mul_(prepared.inverse_x[self.rows, None])
            self.dx[self.rows] = self._gx.mul_(prepared.scale).to(problem.x.dtype)

    def finish(self, need_ds: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Turn gy into ∂y, block by block; return ∂x, ∂y and ∂s."""
        problem, prepared = self.driver.problem, self.driver.prepared
        dy = self.gy
        if self.gy is not None:
            for start in range(0, prepared.m, ROW_BLOCK):
                block = slice(start, start + ROW_BLOCK)
                gy = self.gy[block]
                if problem.normalize:
                    unit_y = problem.y.detach()[block].to(prepared.dtype) * prepared.inverse_y[block, None]
                    gy.sub_(unit_y.mul_((unit_y * gy).sum(dim=1, keepdim=True)))
                gy.mul_(prepared.scale)
            dy = self.gy.to(problem.y.dtype)
        scale = problem.logit_scale
        return self.dx, dy, self.ds.to(scale.dtype).reshape(scale.shape) if need_ds else None


def _multiplies(matrix: Tensor, dtype: torch.dtype) -> bool:
    """Whether BLAS takes rows of `matrix` without copying it."""
    return matrix.dtype == dtype and matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]


def _ready(matrix: Tensor, buffer: Tensor | None, columns: slice) -> Tensor:
    if buffer is None:
        return matrix[columns]
    return buffer[: columns.stop - columns.start].copy_(matrix[columns])
