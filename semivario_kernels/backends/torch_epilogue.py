"""`tile_driver.Epilogue` in torch: the arithmetic of a tile where nothing is compiled, and in float64."""

from __future__ import annotations

import math

import torch

from semivario_kernels.backends.tile_driver import Prepared, Side
from semivario_kernels.geometry import great_circle_km
from semivario_kernels.policy import PairTerms, pair_terms

Tensor = torch.Tensor

FLOAT16_MAX = torch.finfo(torch.float16).max


class TorchEpilogue:
    """A dozen passes over a tile that stays in the cache."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.problem = prepared, prepared.problem

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
        prepared, problem = self.prepared, self.problem
        dead = None if problem.exclude is None else dot == -math.inf
        cos = dot.mul_(prepared.inverse_y[columns])
        positive = prepared.targets[rows, None] == torch.arange(
            columns.start, columns.stop, device=dot.device
        )
        terms = self._pair_terms(rows, columns, cos, vu, positive)
        logits = cos.mul_(prepared.scale)
        if terms.factor is not None:
            logits.mul_(terms.factor)
        if terms.log_weight is not None:
            logits.add_(terms.log_weight)
        if extra is not None:
            kept = terms.factor if terms.factor is not None else terms.soft_target
            assert kept is not None
            extra.copy_(kept)
        if dead is not None:
            logits.masked_fill_(dead, -math.inf)
        if statistics is not None:
            add_statistics(statistics[:, rows], logits, positive, dead, terms.soft_target)

    def column_statistics(
        self, rows: slice, columns: slice, logits: Tensor, soft: Tensor | None, statistics: Tensor
    ) -> None:
        """Add a tile of logits to the columns' sums."""
        dead = None if self.problem.exclude is None else (logits == -math.inf).T
        positive = (
            torch.arange(columns.start, columns.stop, device=logits.device)[:, None]
            == self.prepared.targets[rows]
        )
        add_statistics(statistics[:, columns], logits.T, positive, dead, None if soft is None else soft.T)

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
        """Write A into `out`."""
        kind = self.problem.policy.kind
        dead = None if self.problem.exclude is None else logits == -math.inf
        mass = (
            self.prepared.targets[rows, None]
            == torch.arange(columns.start, columns.stop, device=logits.device)
        ).to(logits.dtype)
        if kind == "rectify" and extra is not None:
            mass = mass + extra
        g = _side_gradient(logits, mass, row_side, rows)
        if column_side is not None:
            g += _side_gradient(logits.T, mass.T, column_side, columns).T
        if dead is not None:
            g.masked_fill_(dead, 0)
        if kind == "penalty" and extra is not None:
            g.mul_(extra)
        g.mul_(self.prepared.inverse_y[columns])
        if out.dtype == torch.float16:
            g.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
        out.copy_(g)

    def _pair_terms(
        self, rows: slice, columns: slice, cos: Tensor, vu: Tensor | None, positive: Tensor
    ) -> PairTerms:
        prepared, policy, variogram = self.prepared, self.problem.policy, self.problem.variogram
        if not policy.reads_positions:
            return PairTerms()
        assert prepared.p is not None
        assert prepared.q is not None
        h_km = great_circle_km(prepared.p[rows], prepared.q[columns])
        if not policy.reads_dissimilarity:
            return pair_terms(policy, None, h_km, None, positive)
        if vu is None:
            d = 1 - cos.masked_fill(cos == -math.inf, 0)
            return pair_terms(policy, variogram, h_km, d, positive)
        assert prepared.inverse_u is not None
        assert prepared.inverse_v is not None
        d = (1 - vu.mul_(prepared.inverse_u[columns])).clamp_(0, 2)
        blank = (prepared.inverse_v[rows, None] == 0) | (prepared.inverse_u[columns] == 0)
        return pair_terms(policy, variogram, h_km, d, positive, blank)


def _side_gradient(logits: Tensor, mass: Tensor, side: Side, rows: slice) -> Tensor:
    """w·(softmax − T) of rows; of columns where everything comes transposed."""
    column = (slice(None), None)
    probability = torch.exp(logits - side.log_sum_exp[rows][column])
    wanted = torch.addcmul(side.smooth[rows][column].expand_as(mass), side.hard[rows][column], mass)
    return (probability - wanted) * side.weight[rows][column]


def add_statistics(
    sums: Tensor, logits: Tensor, positive: Tensor, dead: Tensor | None, soft: Tensor | None
) -> None:
    """Add a tile of logits to the sums of its rows: max, Σexp(l − max), Σl, Σf, Σf·l, l of the positive."""
    top = torch.maximum(sums[0], logits.amax(dim=1).double())
    finite_top = torch.where(top == -math.inf, 0.0, top)  # a tile may be dead throughout
    partial = torch.exp(logits - finite_top.to(logits.dtype)[:, None]).sum(dim=1, dtype=torch.float64)
    partial = partial * torch.exp(finite_top.to(logits.dtype).double() - finite_top)
    sums[1] = sums[1] * torch.exp(sums[0] - finite_top) + partial
    sums[0] = top
    live = logits if dead is None else logits.masked_fill(dead, 0)
    sums[2] += live.sum(dim=1, dtype=torch.float64)
    if soft is not None:
        soft = soft if dead is None else soft.masked_fill(dead, 0)
        sums[3] += soft.sum(dim=1, dtype=torch.float64)
        sums[4] += (soft * live).sum(dim=1, dtype=torch.float64)
    sums[5] += live.masked_fill(~positive, 0).sum(dim=1, dtype=torch.float64)
