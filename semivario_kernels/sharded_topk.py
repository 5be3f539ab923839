"""The best gallery entries of every query where both are split over ranks: each shard's best, merged.

The side with fewer bytes travels. A (value, index) pair is two float64, which hold both exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from semivario_kernels.checks import check_whole
from semivario_kernels.communication_plan import CommunicationPlan, Visit, plan_visits
from semivario_kernels.dissimilarity import arithmetic_dtype
from semivario_kernels.rank_exchange import Block, Exchange, all_numbers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Tensor = torch.Tensor
Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
BEST_BYTES = 16
NO_INDEX = 2.0**53  # of a missing entry: behind all that are there


def plan_topk(queries: list[int], gallery: list[int], k: int, row_bytes: int) -> CommunicationPlan:
    """The plan for shards of these sizes, rank by rank, of `row_bytes` a row."""
    return plan_visits(queries, gallery, [Visit((row_bytes,), k * BEST_BYTES)], [Visit((row_bytes,))])


def sharded_topk(x: Tensor, y: Tensor, k: int, group: ProcessGroup, search: Search) -> tuple[Tensor, Tensor]:
    """(N_r, k) values and indices of this rank's queries in the galleries of all ranks.

    Args:
        x: (N_r, D) queries.
        y: (M_r, D) gallery entries.
        k: how many.
        group: the ranks.
        search: finds the best of one gallery, as `topk_gallery` of a backend.

    Raises:
        ValueError: another dtype, D or k on another rank; k outside 1 … M; no query at all.
    """
    digest = hashlib.sha256(repr((x.dtype, x.shape[1], k)).encode()).digest()
    own = torch.tensor([len(x), len(y), int.from_bytes(digest[:7])], device=x.device)
    queries, gallery, options = all_numbers(own, group).T.tolist()
    if len(set(options)) > 1:
        raise ValueError("group: wanted the same dtype, dimensions and k on all ranks")
    if sum(queries) == 0:
        raise ValueError("x: wanted at least one row on one of the ranks, got none")
    check_whole("k", k, low=1, high=sum(gallery))
    plan = plan_topk(queries, gallery, k, x.shape[1] * x.element_size())
    exchange = Exchange(plan, group)
    if plan.travels == "queries":
        first = sum(gallery[: exchange.rank])

        def meet_gallery(block: Block, _: slice) -> Tensor:
            return _best(search, block["x"], y, k, first)

        brought = exchange.visit({"x": x}, meet_gallery, _merged)
        assert brought is not None
        best = brought
    else:
        best = _nothing(x, k)

        def meet_queries(block: Block, places: slice) -> None:
            best.copy_(_merged(best, _best(search, x, block["y"], k, places.start)))

        exchange.visit({"y": y}, meet_queries, _merged)
    values, indices = best.unbind(dim=2)
    return values.to(arithmetic_dtype(x)), indices.long()


def _best(search: Search, x: Tensor, y: Tensor, k: int, first: int) -> Tensor:
    """(n, k, 2) best values and their indices from `first` on; what is missing has the value −inf."""
    best = _nothing(x, k)
    if len(x) and len(y):
        values, indices = search(x, y, min(k, len(y)))
        best[:, : values.shape[1], 0] = values.double()
        best[:, : values.shape[1], 1] = (indices + first).double()
    return best


def _nothing(x: Tensor, k: int) -> Tensor:
    best = torch.full((len(x), k, 2), NO_INDEX, dtype=torch.float64, device=x.device)
    best[:, :, 0] = -math.inf
    return best


def _merged(best: Tensor, other: Tensor) -> Tensor:
    """The k best of both, equal values by index."""
    both = torch.cat([best, other], dim=1)
    for column, descending in ((1, False), (0, True)):
        order = torch.sort(both[:, :, column], dim=1, descending=descending, stable=True).indices
        both = both.gather(1, order[:, :, None].expand_as(both))
    return both[:, : best.shape[1]].contiguous()
