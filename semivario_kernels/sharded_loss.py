"""The loss of queries and a gallery that are split over ranks: the two passes of a rank.

The forward pass brings the sums of every row, and of every column of a symmetric loss, to the rank that holds
it; the backward pass meets the same blocks again and sums ∂x and ∂y there. A block and a shard are an
`InfoNCEProblem` of their own (`Part`) for the backends' drivers, their targets counted from the block's first
gallery entry. Sums of two parts are merged max-shifted, as a tile's are to those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from semivario_kernels.backends.tile_driver import TileDriver, side_losses
from semivario_kernels.communication_plan import SUMS
from semivario_kernels.dissimilarity import arithmetic_dtype
from semivario_kernels.problem import InfoNCEProblem, Part
from semivario_kernels.rank_exchange import Block, Exchange

Tensor = torch.Tensor
MakeDriver = Callable[[InfoNCEProblem], TileDriver]
LIVE = SUMS - 1  # the last of a row's sums


@dataclass
class ShardedLoss:
    """One loss on one of its ranks.

    Attributes:
        problem: this rank's queries before this rank's gallery, targets and exclude as they index the whole.
        make_driver: the backend's walk over the tiles of a part.
        exchange: the blocks that travel and the ranks they meet.
        gallery_first: place of this rank's first gallery entry in the whole.
        gallery_size: entries of the whole.
    """

    problem: InfoNCEProblem
    make_driver: MakeDriver
    exchange: Exchange
    gallery_first: int
    gallery_size: int

    def sums(self) -> tuple[Tensor, Tensor | None]:
        """(N_r, 7) sums of the rows over the whole gallery; (M_r, 7) of the columns where symmetric."""
        if self.exchange.plan.travels == "queries":

            def meet_gallery(block: Block, _: slice) -> Tensor:
                return self._part_sums(self._with_queries(block))[0]

            return _brought(self.exchange.visit(self._queries(), meet_gallery, merge_sums)), None
        rows = no_sums(self.problem.x.shape[0], self.problem.x.device)

        def meet_queries(block: Block, places: slice) -> Tensor | None:
            of_rows, of_columns = self._part_sums(self._with_gallery(block, places))
            merge_sums(rows, of_rows)
            return of_columns

        return rows, self.exchange.visit(self._gallery(), meet_queries, merge_sums)

    def losses(self, rows: Tensor, columns: Tensor | None) -> Tensor:
        """(N_r,) losses from the sums; NaN where a target is out of range."""
        problem = self.problem
        losses = _losses_of(rows, problem.label_smoothing)
        if columns is not None:
            of_columns = torch.zeros_like(losses)

            def pick(block: Block, places: slice) -> None:
                here, at = self._positives_in(places)
                of_columns[here] = block["losses"][at]

            self.exchange.visit({"losses": _losses_of(columns, problem.label_smoothing)}, pick, torch.add)
            losses = (losses + of_columns) / 2
        known = (problem.targets >= 0) & (problem.targets < self.gallery_size)
        return torch.where(known, losses, torch.nan).to(arithmetic_dtype(problem.x))

    def at_positives(self, values: Tensor) -> Tensor:
        """(M_r,) sums of the `values` (N_r,) of all ranks' queries at their positives."""

        def scatter(_: Block, places: slice) -> Tensor:
            here, at = self._positives_in(places)
            return values.new_zeros(places.stop - places.start).index_add_(0, at, values[here])

        return _brought(self.exchange.visit({}, scatter, torch.add))

    def gradient(
        self,
        upstream: Tensor,
        rows: Tensor,
        columns: Tensor | None,
        need_dx: bool,
        need_dy: bool,
        need_ds: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(∂x, ∂y, ∂s) of Σ upstream_i·loss_i over all ranks' rows; ∂s is this rank's share of it.

        Args:
            upstream: (N_r,) of this rank's rows.
            rows: (N_r, 7) sums.
            columns: (M_r, 7) sums, None where the loss is not symmetric.
            need_dx: whether ∂x is wanted; as all ranks say, and `need_dy` too.
            need_dy: whether ∂y is wanted.
            need_ds: whether ∂s is wanted.
        """
        problem = self.problem
        dtype, device = arithmetic_dtype(problem.x), problem.x.device
        # of what stays here
        totals = _Totals(problem.logit_scale.new_zeros((), dtype=torch.float64) if need_ds else None)
        if self.exchange.plan.travels == "queries":
            if need_dy:
                totals.features = torch.zeros(problem.y.shape, dtype=dtype, device=device)

            def meet_gallery(block: Block, _: slice) -> Tensor | None:
                part = replace(self._with_queries(block), part=Part(live_rows=block["sums"][:, LIVE]))
                dx, dy, ds = self._part_gradient(
                    part, block["upstream"], block["sums"], None, need_dx, need_dy, need_ds
                )
                totals.add(dy, ds)
                return dx

            travelling = self._queries() | {"sums": rows, "upstream": upstream.double()}
            dx = self.exchange.visit(travelling, meet_gallery, torch.Tensor.add_)
            return _cast(dx, problem.x), _cast(totals.features, problem.y), totals.scale
        if need_dx:
            totals.features = torch.zeros(problem.x.shape, dtype=dtype, device=device)

        def meet_queries(block: Block, places: slice) -> Tensor | None:
            of_columns = block.get("sums")
            known = Part(
                live_rows=rows[:, LIVE],
                live_columns=None if of_columns is None else of_columns[:, LIVE],
                column_weights=block.get("weights"),
            )
            part = replace(self._with_gallery(block, places), part=known)
            dx, dy, ds = self._part_gradient(part, upstream, rows, of_columns, need_dx, need_dy, need_ds)
            totals.add(dx, ds)
            return dy

        travelling = self._gallery()
        if columns is not None:
            travelling |= {"sums": columns, "weights": self.at_positives(upstream.double())}
        dy = self.exchange.visit(travelling, meet_queries, torch.Tensor.add_)
        return _cast(totals.features, problem.x), _cast(dy, problem.y), totals.scale

    def _queries(self) -> Block:
        problem = self.problem
        return _given(
            x=problem.x.detach(),
            query_latlon=problem.query_latlon,
            v=problem.v,
            targets=problem.targets,
            exclude=problem.exclude,
        )

    def _gallery(self) -> Block:
        problem = self.problem
        return _given(y=problem.y.detach(), gallery_latlon=problem.gallery_latlon, u=problem.u)

    def _with_queries(self, block: Block) -> InfoNCEProblem:
        """The block's queries before this rank's gallery."""
        part = replace(
            self.problem,
            x=block["x"],
            query_latlon=block.get("query_latlon"),
            v=block.get("v"),
            targets=block["targets"],
            exclude=block.get("exclude"),
        )
        return _counted_from(self.gallery_first, part)

    def _with_gallery(self, block: Block, places: slice) -> InfoNCEProblem:
        """This rank's queries before the block's gallery."""
        part = replace(
            self.problem, y=block["y"], gallery_latlon=block.get("gallery_latlon"), u=block.get("u")
        )
        return _counted_from(places.start, part)

    def _positives_in(self, places: slice) -> tuple[Tensor, Tensor]:
        """Which queries have their positive among these gallery entries, and where there."""
        targets = self.problem.targets
        here = ((targets >= places.start) & (targets < places.stop)).nonzero()[:, 0]
        return here, targets[here] - places.start

    def _part_sums(self, part: InfoNCEProblem) -> tuple[Tensor, Tensor | None]:
        """(n, 7) of the rows and, where symmetric, (m, 7) of the columns."""
        n, m, device = part.x.shape[0], part.y.shape[0], part.x.device
        if n == 0 or m == 0:
            return no_sums(n, device), no_sums(m, device) if part.symmetric else None
        driver = self.make_driver(part)
        rows, columns = driver.statistics()
        live_rows, live_columns = driver.live
        return _with_live(rows, live_rows), None if columns is None else _with_live(columns, live_columns)

    def _part_gradient(
        self,
        part: InfoNCEProblem,
        upstream: Tensor,
        rows: Tensor,
        columns: Tensor | None,
        need_dx: bool,
        need_dy: bool,
        need_ds: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        dtype = arithmetic_dtype(part.x)
        if part.x.shape[0] == 0 or part.y.shape[0] == 0:
            dx, dy = (torch.zeros_like(features, dtype=dtype) for features in (part.x, part.y))
            return dx if need_dx else None, dy if need_dy else None, None
        return self.make_driver(part).gradient(
            upstream.to(dtype), rows.T, None if columns is None else columns.T, need_dx, need_dy, need_ds
        )


@dataclass
class _Totals:
    """Gradients of what stays on a rank."""

    scale: Tensor | None
    features: Tensor | None = None

    def add(self, features: Tensor | None, scale: Tensor | None) -> None:
        if self.features is not None and features is not None:
            self.features += features
        if self.scale is not None and scale is not None:
            self.scale += scale.reshape(()).double()


def no_sums(rows: int, device: torch.device) -> Tensor:
    """(n, 7) sums of nothing."""
    sums = torch.zeros(rows, SUMS, dtype=torch.float64, device=device)
    sums[:, 0] = -math.inf
    return sums


def merge_sums(total: Tensor, part: Tensor) -> Tensor:
    """Add a part's (n, 7) sums to the total, in place: Σexp(l − max) max-shifted, the rest as they are."""
    top = torch.maximum(total[:, 0], part[:, 0])
    finite_top = torch.where(top == -math.inf, 0.0, top)  # a row may be dead throughout
    total[:, 1] *= torch.exp(total[:, 0] - finite_top)
    total[:, 1] += part[:, 1] * torch.exp(part[:, 0] - finite_top)
    total[:, 0] = top
    total[:, 2:] += part[:, 2:]
    return total


def _counted_from(first: int, part: InfoNCEProblem) -> InfoNCEProblem:
    """The part with the places of its targets and excluded entries in its own gallery, or outside of it."""
    exclude = None if part.exclude is None else part.exclude - first
    return replace(part, targets=part.targets - first, exclude=exclude, row_weights=None, part=Part())


def _with_live(statistics: Tensor, live: Tensor) -> Tensor:
    return torch.cat([statistics, live[None].double()]).T.contiguous()


def _losses_of(sums: Tensor, label_smoothing: float) -> Tensor:
    return side_losses(sums.T, sums[:, LIVE], label_smoothing)


def _given(**tensors: Tensor | None) -> Block:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _brought(result: Tensor | None) -> Tensor:
    assert result is not None
    return result


def _cast(gradient: Tensor | None, features: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(features.dtype)
