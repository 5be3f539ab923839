"""The walk over the N×M pairs, tile by tile, that the tiled and the native backend share.

A row block of x̂ (r rows) meets the gallery in column tiles (c columns):

    dot = x̂·yᵀ, vu = v̂·uᵀ          vendor's BLAS into reused buffers, or a backend's own products
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
GPU_WORKSPACE_MB = 1024
GPU_ROW_BLOCK = 1024
GPU_COLUMN_TILE = 8192  # a tile's products stay in a GPU's second-level cache
GPU_PROJECTION_ROWS = 16384
ROW_MULTIPLE = 16  # entries from one row of a buffer to the next: aligned for BLAS, and as Triton knows it
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
    `vu` is v̂_i·u_j or None, perhaps of a shorter dtype where v is; `extra` takes what the gradient needs
    again: a for the policy "penalty", f for "rectify". `statistics` are (6, N) float64 sums, starting at −inf
    and zeros; None leaves them out. The tiles of a row block come in the order of their columns, the last
    with stop = M.
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
        out: Tensor,
    ) -> None:
        """Write A into `out`: the logits' own buffer, or one of the features' shorter dtype."""


class RowProduct(Protocol):
    """Products of a row block with columns, rows of two matrices, in the arithmetic's dtype."""

    def take_rows(self, rows: Tensor, index: Tensor | None = None, scale: Tensor | None = None) -> None:
        """Load rows (r, E) times their `scale` (r,)."""

    def multiply(self, rows: slice, columns: Tensor, out: Tensor) -> Tensor:
        """Write the products of some loaded rows and of columns (c, E) into `out`."""


@dataclass
class FastProducts:
    """What a backend multiplies faster than torch: x̂·yᵀ and v̂·uᵀ; None leaves a product to torch."""

    similarity: RowProduct | None = None
    dissimilarity: RowProduct | None = None


class Prepared:
    """The O(N+M) vectors of a problem, in the arithmetic's dtype."""

    def __init__(self, problem: InfoNCEProblem) -> None:
        self.problem = problem
        self.dtype = arithmetic_dtype(problem.x)
        self.n, self.m = problem.x.shape[0], problem.y.shape[0]
        self.scale = problem.logit_scale.reshape(()).to(self.dtype)
        self.inverse_x = self._inverse_norms(problem.x) if problem.normalize else None
        self.inverse_y = (
            self._inverse_norms(problem.y)
            if problem.normalize
            else problem.y.new_ones(self.m, dtype=self.dtype)
        )
        # what a gradient is returned in; parts are added up
        self.gradient_dtype = (
            (problem.gradient_dtype or problem.x.dtype) if problem.part is None else self.dtype
        )
        self.targets = problem.targets.clamp(0, self.m - 1) if problem.part is None else problem.targets
        self.p = self.q = None
        if problem.policy.reads_positions:
            assert problem.query_latlon is not None
            assert problem.gallery_latlon is not None
            self.p = unit_vectors(problem.query_latlon).to(self.dtype).contiguous()
            self.q = unit_vectors(problem.gallery_latlon).to(self.dtype).contiguous()
        self.inverse_v = self.inverse_u = None
        if problem.v is not None and problem.u is not None:
            self.inverse_v, self.inverse_u = (
                # 0 for "no image"; NaN, as 0·∞ is, for what is no embedding
                torch.where(norms == 0, 0.0, 1 / norms.clamp(min=SMALLEST_NORM) + 0 * norms)
                for norms in (self._norms(problem.v), self._norms(problem.u))
            )

    def _norms(self, matrix: Tensor) -> Tensor:
        if matrix.is_cuda:  # reads shorter dtypes without a copy
            longer = torch.promote_types(matrix.dtype, self.dtype)  # vector_norm does not narrow
            norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=longer).to(self.dtype)
            return norms
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
            counted = (ordered >= 0) & (ordered < self.m)
            counted[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
            rows = rows - counted.sum(dim=1)
            gone = torch.zeros_like(columns).scatter_add_(
                0, ordered.clamp(0, self.m - 1).reshape(-1), counted.reshape(-1).long()
            )
            columns = columns - gone
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
        workspace_mb: bound on the logits' buffers; 64 on the CPU and 1,024 on a GPU when left out.
        make_products: makes the products that are not left to torch.
    """

    def __init__(
        self,
        problem: InfoNCEProblem,
        make_epilogue: Callable[[Prepared], Epilogue],
        workspace_mb: int | None,
        make_products: Callable[[Prepared], FastProducts] | None = None,
    ) -> None:
        self.problem = problem
        self.prepared = Prepared(problem)
        self.products = FastProducts() if make_products is None else make_products(self.prepared)
        self.live = self._live()
        self.epilogue = make_epilogue(self.prepared)
        self.block_rows, self.strip_rows, self.tile = self._sizes(workspace_mb)

    @property
    def fits_strips(self) -> bool:
        """Whether the gradient is made in the forward pass."""
        # ∂y in float32 is read and written once a strip: 8·D/rows bytes a pair, 8 as long as rows ≥ D
        thin = self.problem.x.shape[1] if self.problem.x.is_cuda else THINNEST_STRIP
        return not self.problem.symmetric and self.strip_rows >= min(thin, self.prepared.n)

    def _sizes(self, workspace_mb: int | None) -> tuple[int, int, int]:
        """Rows of a block of the two passes, rows of a strip, columns of a tile."""
        problem, prepared = self.problem, self.prepared
        gpu = problem.x.is_cuda
        budget = (workspace_mb or (GPU_WORKSPACE_MB if gpu else WORKSPACE_MB)) * 2**20
        most_rows = GPU_ROW_BLOCK if gpu else ROW_BLOCK
        tile = min(GPU_COLUMN_TILE if gpu else COLUMN_TILE, prepared.m)
        dtype = product_dtype(problem.x)
        long, short = (t.itemsize for t in (prepared.dtype, dtype))
        per_row = problem.x.shape[1] * (long + short)  # gx and x̂
        if self.products.similarity is not None:
            per_row += problem.x.shape[1] * long  # x̂ once more, its own way
        per_pair = 0 if dtype == prepared.dtype else short  # A of a tile, if not in the logits' place
        fixed = problem.x.shape[1] * short
        if problem.v is not None:
            of_v = embedding_dtype(problem).itemsize
            per_row += problem.v.shape[1] * of_v
            per_pair += dissimilarity_dtype(problem).itemsize
            fixed += problem.v.shape[1] * of_v
        kept = 2 * long if prepared.keeps_extra else long  # logits, and a or f
        budget -= fixed * tile

        def rows(width: int) -> int:
            fitting = min(most_rows, prepared.n, budget // (kept * width + per_pair * tile + per_row))
            return 0 if fitting < 1 else math.ceil(prepared.n / math.ceil(prepared.n / fitting))

        return max(1, rows(tile)), rows(prepared.m), tile

    def run(self, weights: Tensor | None, need_dx: bool, need_dy: bool, need_ds: bool) -> Result:
        """Compute the losses; with `weights` w_i = ∂result/∂loss_i, (N,), also the gradients asked for."""
        wants_gradient = weights is not None and (need_dx or need_dy or need_ds)
        if wants_gradient and self.fits_strips:
            assert weights is not None
            result = Result(*self._empty_statistics())
            gradient = GradientSums(self, weights, need_dx, need_dy, need_ds)
            blocks = Blocks(self, self.strip_rows, self.prepared.m)
            for rows in self._row_blocks(self.strip_rows):
                self._strip(rows, result, blocks, gradient)
            result.losses = self._losses(result)
            result.dx, result.dy, result.ds = gradient.finish()
            return result
        row_statistics, column_statistics = self.statistics()
        result = Result(row_statistics.new_empty(0), row_statistics, column_statistics)
        result.losses = self._losses(result)
        if wants_gradient:
            assert weights is not None
            result.dx, result.dy, result.ds = self.gradient(
                weights, result.row_statistics, result.column_statistics, need_dx, need_dy, need_ds
            )
        return result

    def statistics(self) -> tuple[Tensor, Tensor | None]:
        """The rows' sums, (6, N), and the columns', (6, M), where the loss is symmetric."""
        _, row_statistics, column_statistics = self._empty_statistics()
        blocks = Blocks(self, self.block_rows, self.tile)
        for rows in self._row_blocks(self.block_rows):
            blocks.take_rows(rows)
            for columns in self._column_tiles():
                logits, extra = blocks.logits(columns, row_statistics)
                if column_statistics is not None:
                    soft = extra if self.problem.policy.kind == "rectify" else None
                    self.epilogue.column_statistics(rows, columns, logits, soft, column_statistics)
        return row_statistics, column_statistics

    def gradient(
        self,
        weights: Tensor,
        row_statistics: Tensor,
        column_statistics: Tensor | None,
        need_dx: bool,
        need_dy: bool,
        need_ds: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of Σ w_i·loss_i from the sums of an earlier run; the logits are computed again."""
        gradient = GradientSums(self, weights, need_dx, need_dy, need_ds)
        row_side, column_side = self._sides(
            gradient.weights, row_statistics, column_statistics, gradient.gain
        )
        blocks = Blocks(self, self.block_rows, self.tile)
        for rows in self._row_blocks(self.block_rows):
            unit_x = blocks.take_rows(rows)
            gradient.take_rows(rows, unit_x)
            for columns in self._column_tiles():
                logits, extra = blocks.logits(columns, None)
                a = blocks.a_tile(logits)
                self.epilogue.gradient(rows, columns, logits, extra, row_side, column_side, a)
                gradient.add(columns, a, blocks.y_tile(columns))
            gradient.finish_rows()
        return gradient.finish()

    def _strip(self, rows: slice, result: Result, blocks: Blocks, gradient: GradientSums) -> None:
        gradient.take_rows(rows, blocks.take_rows(rows))
        for columns in self._column_tiles():
            blocks.logits(columns, result.row_statistics)
        side, _ = self._sides(gradient.weights, result.row_statistics, None)
        at_once = blocks.takes_y_as_it_is and blocks.writes_a_in_place
        for columns in self._column_tiles():
            logits, extra = blocks.tile(columns)
            a = blocks.a_tile(logits)
            self.epilogue.gradient(rows, columns, logits, extra, side, None, a)
            if not at_once:
                gradient.add(columns, a, blocks.y_tile(columns))
        if at_once:
            everything = slice(0, self.prepared.m)
            gradient.add(everything, blocks.tile(everything)[0], self.problem.y.detach())
        gradient.finish_rows()

    def project(
        self,
        features: Tensor,
        inverse: Tensor | None,
        gradient: Tensor,
        scale: Tensor,
        out: Tensor | None,
        *,
        divide: bool,
    ) -> Tensor:
        """Write scale·(g − x̂⟨x̂, g⟩), times 1/|x| with `divide`, into `out`; return ⟨x̂, g⟩, (rows,).

        `features` are x, `inverse` is 1/|x|; None takes the features as they are, without the projection.
        `out` may be `gradient`, whose values are not kept.
        """
        along = gradient.new_empty(len(features))
        size = GPU_PROJECTION_ROWS if features.is_cuda else ROW_BLOCK
        for start in range(0, len(features), size):
            rows = slice(start, start + size)
            g = gradient[rows]
            unit = features[rows].to(g.dtype)
            if inverse is not None:
                unit = unit * inverse[rows, None]
            torch.sum(unit * g, dim=1, out=along[rows])
            if out is None:
                continue
            if inverse is not None:
                g.sub_(unit.mul_(along[rows, None]))
                if divide:
                    g.mul_(inverse[rows, None])
            g.mul_(scale)
            if out is not gradient:
                out[rows] = g
        return along

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

    def _live(self) -> tuple[Tensor, Tensor]:
        """Live entries of the rows (N,) and columns (M,), of the whole problem where they are known."""
        rows, columns = self.prepared.live_counts()
        part = self.problem.part
        if part is not None and part.live_rows is not None:
            rows = part.live_rows
        if part is not None and part.live_columns is not None:
            columns = part.live_columns
        return rows, columns

    def _losses(self, result: Result) -> Tensor:
        live_rows, live_columns = self.live
        epsilon = self.problem.label_smoothing
        losses = side_losses(result.row_statistics, live_rows, epsilon)
        targets = self.prepared.targets
        if result.column_statistics is not None:
            columns = side_losses(result.column_statistics, live_columns, epsilon)
            losses = (losses + columns[targets]) / 2
        losses = torch.where(targets == self.problem.targets, losses, torch.nan)
        return losses.to(self.prepared.dtype)

    def _sides(
        self,
        weights: Tensor,
        row_statistics: Tensor,
        column_statistics: Tensor | None,
        gain: Tensor | None = None,
    ) -> tuple[Side, Side | None]:
        """What the gradient reads per row and per column; `weights` come with the `gain`."""
        dtype, live, epsilon = self.prepared.dtype, self.live, self.problem.label_smoothing
        weights = weights.double() / (2 if self.problem.symmetric else 1)
        log_sum_exp, hard, smooth = _targets_of(row_statistics, live[0], epsilon)
        row_side = Side(*(t.to(dtype) for t in (log_sum_exp, weights, hard, smooth)))
        if column_statistics is None:
            return row_side, None
        part = self.problem.part
        if part is None:
            of_column = torch.zeros(self.prepared.m, dtype=torch.float64, device=weights.device)
            of_column[self.prepared.targets] = weights
        else:
            assert part.column_weights is not None
            of_column = part.column_weights.double() / 2
            of_column = of_column if gain is None else of_column * gain
        log_sum_exp, hard, smooth = _targets_of(column_statistics, live[1], epsilon)
        return row_side, Side(*(t.to(dtype) for t in (log_sum_exp, of_column, hard, smooth)))


class Blocks:
    """The buffers of one row block: x̂, v̂, logits of `width` columns, the dissimilarity's product, A."""

    def __init__(self, driver: TileDriver, rows: int, width: int) -> None:
        self.driver, self.width = driver, width
        problem, prepared, tile = driver.problem, driver.prepared, driver.tile
        self.y, self.u = problem.y.detach(), problem.u

        def buffer(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
            apart = math.ceil(columns / ROW_MULTIPLE) * ROW_MULTIPLE
            return torch.empty(rows, apart, dtype=dtype, device=problem.x.device)[:, :columns]

        dtype = product_dtype(problem.x)
        self._logits = buffer(rows, width, prepared.dtype)
        self._extra = buffer(rows, width, prepared.dtype) if prepared.keeps_extra else None
        self._a = None if dtype == prepared.dtype else buffer(rows, tile, dtype)
        self._unit_x = buffer(rows, problem.x.shape[1], dtype)
        self._y_tile = None if _multiplies(self.y, dtype) else buffer(tile, self.y.shape[1], dtype)
        self._vu = self._unit_v = self._u_tile = None
        if problem.v is not None and self.u is not None:
            of_v = embedding_dtype(problem)
            self._vu = buffer(rows, tile, dissimilarity_dtype(problem))
            if driver.products.dissimilarity is None:
                self._unit_v = buffer(rows, problem.v.shape[1], of_v)
                self._u_tile = None if _multiplies(self.u, of_v) else buffer(tile, self.u.shape[1], of_v)
        self.rows = slice(0, 0)

    @property
    def takes_y_as_it_is(self) -> bool:
        """Whether y enters the products without a cast or a copy."""
        return self._y_tile is None

    @property
    def writes_a_in_place(self) -> bool:
        """Whether A takes the logits' place."""
        return self._a is None

    def take_rows(self, rows: slice) -> Tensor:
        """Load x̂ and v̂ of a row block; return x̂."""
        problem, prepared, products = self.driver.problem, self.driver.prepared, self.driver.products
        self.rows, size = rows, rows.stop - rows.start
        x = problem.x.detach()[rows]
        unit_x = _scaled_rows(x, prepared.inverse_x, rows, self._unit_x[:size])
        if products.similarity is not None:
            products.similarity.take_rows(
                x, scale=None if prepared.inverse_x is None else prepared.inverse_x[rows]
            )
        if problem.v is not None and prepared.inverse_v is not None:
            if products.dissimilarity is not None:
                products.dissimilarity.take_rows(problem.v[rows], scale=prepared.inverse_v[rows])
            elif self._unit_v is not None:
                _scaled_rows(problem.v[rows], prepared.inverse_v, rows, self._unit_v[:size])
        return unit_x

    def a_tile(self, logits: Tensor) -> Tensor:
        """Where A of a tile of logits goes."""
        return logits if self._a is None else self._a[: logits.shape[0], : logits.shape[1]]

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
        products, all_rows = self.driver.products, slice(0, size)
        if products.similarity is not None:
            products.similarity.multiply(all_rows, self.y[columns], dot)
        else:
            _product(self._unit_x[:size], self.y_tile(columns).T, dot)
        vu = None
        if self.u is not None and self._vu is not None:
            vu = self._vu[:size, : columns.stop - columns.start]
            if products.dissimilarity is not None:
                products.dissimilarity.multiply(all_rows, self.u[columns], vu)
            elif self._unit_v is not None:
                _product(self._unit_v[:size], _ready(self.u, self._u_tile, columns).T, vu)
        exclude = self.driver.problem.exclude
        if exclude is not None:
            block = exclude[rows]
            here = (block >= columns.start) & (block < columns.stop)
            dead = torch.where(here, -math.inf, math.inf).to(dot.dtype)
            last = columns.stop - columns.start - 1
            dot.scatter_reduce_(1, (block - columns.start).clamp(0, last), dead, "amin")
        self.driver.epilogue.forward(rows, columns, dot, vu, extra, statistics)
        return dot, extra


class GradientSums:
    """gx of the current row block, gy of the whole gallery and the gradients made of them.

    `weights` are the rows' w_i times a gain that keeps A within float16's range; 1 for other dtypes.
    """

    def __init__(
        self, driver: TileDriver, weights: Tensor, need_dx: bool, need_dy: bool, need_ds: bool
    ) -> None:
        self.driver = driver
        problem, prepared = driver.problem, driver.prepared
        x, y = problem.x, problem.y
        self.dx = torch.empty(x.shape, dtype=prepared.gradient_dtype, device=x.device) if need_dx else None
        # summed in float32 and cast only at the end where the features are shorter
        self.gy = torch.zeros(y.shape, dtype=prepared.dtype, device=y.device) if need_dy else None
        self.ds = torch.zeros((), dtype=torch.float64, device=x.device) if need_ds else None
        self.weights, self.gain = weights, None
        if product_dtype(x) == torch.float16:
            self.gain = float16_gain(weights, prepared.inverse_y)
            self.weights = weights * self.gain
        self._gx = torch.empty(0)
        self._unit_x = torch.empty(0)
        self.rows = slice(0, 0)

    def take_rows(self, rows: slice, unit_x: Tensor) -> None:
        """Start a row block."""
        self.rows, self._unit_x = rows, unit_x
        if self._gx.shape != unit_x.shape:
            self._gx = torch.empty_like(unit_x, dtype=self.driver.prepared.dtype)
        self._gx.zero_()

    def add(self, columns: slice, a: Tensor, y: Tensor) -> None:
        """Add the products of a tile of A."""
        if self.dx is not None or self.ds is not None:
            _add_product(a, y, self._gx)
        if self.gy is not None:
            _add_product(a.T, self._unit_x, self.gy[columns])

    def finish_rows(self) -> None:
        """Turn gx of the row block into ∂x and ∂s."""
        driver, rows = self.driver, self.rows
        inverse_x = driver.prepared.inverse_x
        if self.dx is not None or self.ds is not None:
            along = driver.project(
                driver.problem.x.detach()[rows],
                None if inverse_x is None else inverse_x[rows],
                self._gx,
                self._scale(),
                None if self.dx is None else self.dx[rows],
                divide=True,
            )
            if self.ds is not None:
                self.ds += along.sum(dtype=torch.float64)

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Turn gy into ∂y; return ∂x, ∂y and ∂s, a float64 scalar."""
        problem, prepared = self.driver.problem, self.driver.prepared
        dy = None
        if self.gy is not None:
            dy = (
                self.gy
                if self.gy.dtype == prepared.gradient_dtype
                else torch.empty_like(self.gy, dtype=prepared.gradient_dtype)
            )
            inverse_y = prepared.inverse_y if problem.normalize else None
            self.driver.project(problem.y.detach(), inverse_y, self.gy, self._scale(), dy, divide=False)
        ds = self.ds if self.ds is None or self.gain is None else self.ds / self.gain
        return self.dx, dy, ds

    def _scale(self) -> Tensor:
        scale = self.driver.prepared.scale
        return scale if self.gain is None else scale / self.gain


def _targets_of(statistics: Tensor, live: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exp, hard, smooth) of every row or column, float64."""
    return (
        statistics[0] + statistics[1].log(),
        (1 - label_smoothing) / (1 + statistics[3]),
        label_smoothing / live.double(),
    )


def side_losses(statistics: Tensor, live: Tensor, label_smoothing: float) -> Tensor:
    """Losses of rows (or columns) from their complete sums (6, n) and numbers of live entries (n,)."""
    log_sum_exp, hard, smooth = _targets_of(statistics, live, label_smoothing)
    losses = log_sum_exp - hard * (statistics[5] + statistics[4])
    return losses - smooth * statistics[2] if label_smoothing else losses


def product_dtype(matrix: Tensor) -> torch.dtype:
    """Return the dtype `matrix` is multiplied in: its own on a GPU, the arithmetic's on the CPU."""
    return matrix.dtype if matrix.is_cuda else arithmetic_dtype(matrix)


def dissimilarity_dtype(problem: InfoNCEProblem) -> torch.dtype:
    """Return the dtype of v̂·uᵀ: the factors', but for `penalty` the arithmetic's.

    Its a = e^(d−γ) multiplies the logit, and so the product's rounding s-fold; a log-weight adds it.
    """
    dtype = embedding_dtype(problem)
    return torch.promote_types(dtype, torch.float32) if problem.policy.kind == "penalty" else dtype


def embedding_dtype(problem: InfoNCEProblem) -> torch.dtype:
    """Return the dtype v and u are multiplied in: never longer than the arithmetic's of the features."""
    assert problem.v is not None
    dtype, most = product_dtype(problem.v), arithmetic_dtype(problem.x)
    return most if dtype.itemsize > most.itemsize else dtype


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a·b, summed in float32 where `out` is longer than the factors."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)
    else:  # no BLAS for this on the CPU
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def _add_product(a: Tensor, b: Tensor, total: Tensor) -> None:
    """total += a·b, summed in float32 where `total` is longer than the factors."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    else:  # no BLAS for this on the CPU
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


def float16_gain(weights: Tensor, inverse_y: Tensor | None) -> Tensor:
    """Return what A is multiplied by in float16, whose smallest number is 6e-8.

    |g·a| ≤ 8·w (penalty: a ≤ e²), so that a gallery entry may be eight times shorter than the mean before its
    A is cut at 65504. The mean of the lengths, not their smallest, since one entry may be all zeros.
    """
    gain = 1024 / weights.abs().amax().clamp(min=1e-20)  # all may be 0
    return gain if inverse_y is None else gain * inverse_y.reciprocal().mean()


def _multiplies(matrix: Tensor, dtype: torch.dtype) -> bool:
    """Whether BLAS takes rows of `matrix` without copying it."""
    return matrix.dtype == dtype and matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]


def _ready(matrix: Tensor, buffer: Tensor | None, columns: slice) -> Tensor:
    if buffer is None:
        return matrix[columns]
    return buffer[: columns.stop - columns.start].copy_(matrix[columns])


def _scaled_rows(matrix: Tensor, factor: Tensor | None, rows: slice, out: Tensor) -> Tensor:
    """Rows times their factor, rounded once."""
    if factor is None:
        return out.copy_(matrix)
    if out.dtype == factor.dtype:
        return out.copy_(matrix).mul_(factor[rows, None])
    return out.copy_(matrix * factor[rows, None])
