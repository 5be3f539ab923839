"""Queries and gallery split over the ranks of a torch.distributed group, brought together by all-gather."""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.distributed as dist


class _GatherRows(torch.autograd.Function):
    """Concatenate all ranks' rows in rank order; backward sums the ranks' gradients of a row at its owner."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sizes: list[int], group: dist.ProcessGroup) -> torch.Tensor:
        rank = dist.get_rank(group)
        ctx.group, ctx.own = group, slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # collectives want one shape
        padded[: sizes[rank]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient[ctx.own], None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(factor)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None


class Shards:
    """The sizes of all ranks' shards and the collectives over them.

    Args:
        queries: rows of this rank's queries.
        gallery: rows of this rank's gallery.
        group: the ranks; every one of them must call in the same order.
        device: where the tensors live.
    """

    def __init__(self, queries: int, gallery: int, group: dist.ProcessGroup, device: torch.device) -> None:
        self.group = group
        own = torch.tensor([queries, gallery], device=device)
        sizes = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes, own, group=group)
        self.query_sizes = [int(size[0]) for size in sizes]
        self.gallery_sizes = [int(size[1]) for size in sizes]
        self.rank = dist.get_rank(group)
        self.own_gallery = gallery

    @property
    def gallery_offset(self) -> int:
        """Index of this rank's first gallery entry among all."""
        return sum(self.gallery_sizes[: self.rank])

    @overload
    def gather_gallery(self, rows: torch.Tensor) -> torch.Tensor: ...
    @overload
    def gather_gallery(self, rows: None) -> None: ...
    def gather_gallery(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """Concatenate the gallery's rows of all ranks, differentiably."""
        return None if rows is None else _gather_rows(rows, self.gallery_sizes, self.group)

    @overload
    def gather_queries(self, rows: torch.Tensor) -> torch.Tensor: ...
    @overload
    def gather_queries(self, rows: None) -> None: ...
    def gather_queries(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """Concatenate the queries' rows of all ranks, differentiably."""
        return None if rows is None else _gather_rows(rows, self.query_sizes, self.group)

    def own_queries(self, rows: torch.Tensor) -> torch.Tensor:
        """Cut this rank's rows out of gathered ones."""
        start = sum(self.query_sizes[: self.rank])
        return rows[start : start + self.query_sizes[self.rank]]

    def scale_gradient(self, mean: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return this rank's mean with its gradient times W·w_r/Σw, so that the ranks' average is global."""
        total = weight.clone()
        dist.all_reduce(total, group=self.group)
        scaled: torch.Tensor = _ScaleGradient.apply(mean, len(self.query_sizes) * weight / total)
        return scaled


def _gather_rows(rows: torch.Tensor, sizes: list[int], group: dist.ProcessGroup) -> torch.Tensor:
    gathered: torch.Tensor = _GatherRows.apply(rows, sizes, group)
    return gathered
