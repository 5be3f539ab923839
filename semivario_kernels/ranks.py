"""The ranks of a torch.distributed group that share one piece of work, or one process alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")


class Ranks:
    """Who shares the work.

    Args:
        group: its processes; all of them must call in the same order. None is this process alone.
        device: where the group's collectives find their tensors.
    """

    def __init__(self, group: ProcessGroup | None = None, device: torch.device | str = "cpu") -> None:
        self._group, self._device = group, torch.device(device)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that shows progress and writes files."""
        return self.rank == 0

    def first_does(self, make: Callable[[], Result]) -> Result:
        """What the first rank's `make` returns, or its error, on all ranks."""
        if self._group is None:
            return make()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        source = dist.get_global_rank(self._group, 0)
        dist.broadcast_object_list(outcome, src=source, group=self._group, device=self._device)
        if outcome[1] is not None:
            raise outcome[1]
        result: Result = outcome[0]
        return result

    def everyones(self, value: Result) -> list[Result]:
        """The values of all ranks."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def same_everywhere(self, name: str, value: object) -> None:
        """ValueError on all ranks where one of them has another value."""
        values = self.everyones(value)
        differing = [rank for rank, other in enumerate(values) if other != values[0]]
        if differing:
            raise ValueError(f"{name}: wanted the same on all ranks; those of ranks {differing} differ")

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, on the tensor's device."""
        if self._group is None:
            return tensor
        total = tensor.to(self._device, copy=True)
        dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def joined(self, make: Callable[[slice], torch.Tensor], rows: int) -> torch.Tensor:
        """`make` of all rows, of which every rank makes its even share."""
        bounds = [rows * rank // self.size for rank in range(self.size + 1)]
        own = make(slice(bounds[self.rank], bounds[self.rank + 1]))
        if self._group is None:
            return own
        most = -(-rows // self.size)
        padded = own.new_zeros(most, *own.shape[1:], device=self._device)
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self._group)
        sizes = [stop - start for start, stop in pairwise(bounds)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(own.device)

    def dealt(self, costs: Sequence[int]) -> list[int]:
        """This rank's share of pieces of work with these costs: the dearest first, to who has least."""
        loads = [(0, rank) for rank in range(self.size)]
        own = []
        for piece in sorted(range(len(costs)), key=lambda piece: (-costs[piece], piece)):
            load, rank = heapq.heappop(loads)
            heapq.heappush(loads, (load + costs[piece], rank))
            if rank == self.rank:
                own.append(piece)
        return sorted(own)
