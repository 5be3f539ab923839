"""What the processes of one `torchrun` tell each other: counters and points where they wait for all.

Embedding needs no collective, so there is no process group, whose first operation that waits too long for a
slower process ends the run; the store that torchrun keeps anyway is enough. Without torchrun there is one
rank.
"""

from __future__ import annotations

import itertools
import os
import time
from datetime import timedelta
from functools import cached_property
from typing import Any

_PATIENCE = timedelta(days=30)  # torchrun ends the others when one fails
_FAREWELL_SECONDS = 60.0
_GENERATIONS = itertools.count()  # every rank makes its objects in the same order


class Ranks:
    """One process among `world`.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
        device_index: its number among the processes of this machine: the GPU it uses.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.device_index = int(os.environ.get("LOCAL_RANK", 0))
        self._prefix = f"geoclip/{next(_GENERATIONS)}"
        self._counts: dict[str, int] = {}

    @cached_property
    def _store(self) -> Any:
        """The store that torchrun keeps; None for a single process."""
        if self.world == 1:
            return None
        from torch.distributed.rendezvous import rendezvous

        return next(iter(rendezvous("env://", timeout=_PATIENCE)))[0]

    def add(self, name: str, amount: int) -> int:
        """Adds to a counter that all share; its value so far."""
        if self._store is not None:
            return int(self._store.add(f"{self._prefix}/{name}", amount))
        self._counts[name] = self._counts.get(name, 0) + amount
        return self._counts[name]

    def wait(self, name: str) -> None:
        """Returns once every rank has called this with the same name, which is used once."""
        if self._store is not None:
            if self.add(name, 1) == self.world:
                self._store.set(f"{self._prefix}/{name}/all", b"1")
            self._store.wait([f"{self._prefix}/{name}/all"], _PATIENCE)

    def leave(self) -> None:
        """The last call: rank 0, which may be the one that keeps the store, goes last."""
        self.add("left", 1)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while self.rank == 0 and self.add("left", 0) < self.world and time.monotonic() < deadline:
            time.sleep(0.01)
