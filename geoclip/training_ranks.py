"""The processes of a distributed run: who does which share, and what all of them must know.

A batch, the queue and the gallery are cut into contiguous shares in rank order, so that the shares put
together are what one process would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class TrainingRanks:
    """This process among `world`; the default is a process of its own.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> TrainingRanks:
        """Those of torch.distributed, where it was initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All processes, or None where there is one."""
        return None if self.world == 1 else dist.group.WORLD

    def share(self, n: int, rank: int | None = None) -> slice:
        """Return which of n things are a rank's, this one's by default: shares differ by one at most."""
        rank = self.rank if rank is None else rank
        return slice(n * rank // self.world, n * (rank + 1) // self.world)

    def shares(self, things: torch.Tensor) -> list[torch.Tensor]:
        """Cut (n, …) into every rank's share, in rank order."""
        return [things[self.share(len(things), rank)] for rank in range(self.world)]

    def own(self, things: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
        """Cut this rank's out of (n, …) things that are in the order of the ranks' parts put together."""
        start = sum(len(part) for part in parts[: self.rank])
        return things[start : start + len(parts[self.rank])]

    def gather(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Return every rank's (n_r, …) in rank order; all ranks must call. No gradient flows."""
        if self.world == 1:
            return [rows]
        own = torch.tensor([len(rows)], device=rows.device)
        sizes = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(sizes, own)
        counts = [int(size) for size in sizes]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # collectives want one shape
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return [part[:count] for part, count in zip(parts, counts, strict=True)]

    def from_first(self, value: Any) -> Any:
        """Return what rank 0 passed, to all ranks."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
