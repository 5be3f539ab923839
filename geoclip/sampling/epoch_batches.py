"""Batches of an epoch: random, or random seeds each with neighbours out of a table; no row twice.

An epoch is a pure function of (seed, epoch, tables). The ranks of a distributed run plan the same epoch and
take every `world_size`-th batch: their batches are disjoint and of one number.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import Sampler

from geoclip.sampling.coverage import Coverage, coverage

Rows = NDArray[np.int64]
Table = NDArray[np.int32]

_PLACES_AT_ONCE = 65_536  # 32 MB of a table of 128 neighbours


class EpochBatchSampler(Sampler[list[int]]):
    """Batches for a DataLoader's `batch_sampler`; give it `neighbours` and near ones come together.

    Sample4Geo's sampling (Deuser et al., 2023): a batch takes the next random place, then of its neighbours
    the `nearest` and as many as `further` random ones of the ranks behind, as far as they are still to come
    in this epoch; then the next random place, until the batch is full. Every row comes at most once per
    epoch. An epoch has as many whole batches as the data give; which rows are left out is drawn anew.

    A data set may have several rows (images) of one place. A batch never holds two of them: they would be
    each other's negatives. Those of several ranks may, in one step: a loss over all of them has to leave such
    pairs out. Tables are in terms of places.

    Args:
        rows: number of rows N of the data set.
        batch_size: rows per batch and rank, at least 2.
        neighbours: (P, K) int32 places, nearest first, −1 padded; `geographic_neighbours`,
            `similarity_neighbours` or `surprise_neighbours(…).hard` make such a table. None: random batches.
        avoid: (P, F) int32 places that should not be in a batch with a place, −1 padded:
            `surprise_neighbours(…).false`. Heeded as long as other rows remain.
        places: (N,) place of every row, 0 … P−1; every row is a place of its own by default.
        nearest: first neighbours that each seed brings.
        further: random ones of the other ranks, as many as this.
        seed: with the epoch, all there is to a random choice.
        rank: of this process; asked of torch.distributed by default.
        world_size: number of processes.

    Raises:
        ValueError: `batch_size` below 2, too few rows or places for one batch per rank, a table that names
            unknown places, the place itself or one place twice, and numbers out of range.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        neighbours: Table | None = None,
        avoid: Table | None = None,
        places: Rows | None = None,
        nearest: int = 32,
        further: int = 32,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 2:
            raise ValueError(
                f"batch_size: wanted at least 2, so that a batch has a negative, got {batch_size}"
            )
        if nearest < 0 or further < 0:
            raise ValueError(f"nearest, further: wanted at least 0, got {nearest} and {further}")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if world_size is None:
            world_size = torch.distributed.get_world_size() if distributed else 1
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: wanted between 0 and world_size − 1 ({world_size - 1}), got {rank}")
        if places is None:
            places = np.arange(rows)
        elif places.shape != (rows,) or (rows and places.min() < 0):
            raise ValueError(f"places: wanted {rows} numbers of at least 0, got shape {places.shape}")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.nearest, self.further = nearest, further
        self._rows_by_place = np.argsort(places, kind="stable")
        self._counts = np.bincount(places, minlength=1 if rows else 0)
        self._batches = _most_batches(self._counts, batch_size, world_size)
        self._places = len(self._counts)
        self.neighbours = self._checked("neighbours", neighbours)
        self.avoid = self._checked("avoid", avoid)
        self._replaced = False
        self.epoch = 0
        self._handed_out = self._resume_at = 0
        self._plan: tuple[int, Rows] | None = None

    def __len__(self) -> int:
        """Batches per epoch and rank, the same in every epoch."""
        return self._batches // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of this epoch, from its beginning (or where a state was loaded)."""
        if epoch != self.epoch:
            self.epoch, self._handed_out, self._resume_at = epoch, 0, 0

    def set_neighbours(self, neighbours: Table | None, avoid: Table | None = None) -> None:
        """Draw from other tables from now on: dynamic sampling. Call it between epochs, on every rank.

        Args:
            neighbours: (P, K) int32, as the sampler takes it.
            avoid: (P, F) int32, likewise.

        Raises:
            ValueError: a table that does not fit the data.
        """
        self.neighbours, self.avoid = self._checked("neighbours", neighbours), self._checked("avoid", avoid)
        self._replaced, self._plan = True, None

    def __iter__(self) -> Iterator[list[int]]:
        first, self._resume_at = self._resume_at, 0
        batches = self.epoch_batches()
        for position in range(first, len(batches)):
            self._handed_out = position + 1
            yield batches[position].tolist()

    def batch(self, step: int) -> Rows:
        """The (batch_size,) rows of this rank's step, counted from the first step of epoch 0."""
        epoch, position = divmod(step, len(self))
        rows: Rows = self._planned(epoch)[position]
        return rows

    def epoch_batches(self) -> Rows:
        """(len(self), batch_size) rows of this rank in this epoch."""
        return self._planned(self.epoch)

    def coverage(self, latlon: NDArray[np.float64] | None = None, epoch: int | None = None) -> Coverage:
        """What this rank's batches of an epoch cover.

        Args:
            latlon: (N, 2) latitude and longitude of the rows in degrees; without it no distance is measured.
            epoch: which; the sampler's own when left out.

        Raises:
            ValueError: `latlon` has another number of rows.
        """
        return coverage(self._planned(self.epoch if epoch is None else epoch), self.rows, latlon)

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """All that is needed to go on inside the epoch.

        Args:
            batches_done: batches of this epoch that were trained on. By default those handed out, which are
                more where a DataLoader's workers read ahead.
        """
        return {
            "epoch": self.epoch,
            "batches_done": self._handed_out if batches_done is None else batches_done,
            "settings": self._settings(),
            # tables that training itself made cannot be made again from its weights of now
            "tables": [
                None if t is None else torch.from_numpy(np.array(t)) for t in (self.neighbours, self.avoid)
            ]
            if self._replaced
            else None,
            "tables_checksum": self._checksum(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken.

        Raises:
            ValueError: it is that of a sampler with other settings, data or neighbours.
        """
        for name, value in self._settings().items():
            if state["settings"][name] != value:
                raise ValueError(
                    f"{name}: the saved state has {state['settings'][name]}, this sampler {value}"
                )
        if state["tables"] is not None:
            self.set_neighbours(*(None if table is None else table.numpy() for table in state["tables"]))
        elif state["tables_checksum"] != self._checksum():
            raise ValueError("neighbours: the saved state was taken with another table of neighbours")
        epochs, position = divmod(state["batches_done"], len(self))
        self.epoch = state["epoch"] + epochs
        self._handed_out = self._resume_at = position

    def _settings(self) -> dict[str, int]:
        names = ("rows", "batch_size", "nearest", "further", "seed", "world_size")
        return {name: getattr(self, name) for name in names}

    def _checksum(self) -> int:
        checksum = zlib.crc32(self._rows_by_place.data)
        for table in (self.neighbours, self.avoid):
            checksum = zlib.crc32(b"" if table is None else np.ascontiguousarray(table).data, checksum)
        return checksum

    def _checked(self, name: str, table: Table | None) -> Table | None:
        if table is None:
            return None
        if table.ndim != 2 or len(table) != self._places or table.dtype != np.int32:
            raise ValueError(
                f"{name}: wanted ({self._places}, K) int32, one row per place, "
                f"got {table.shape} {table.dtype}"
            )
        for start in range(0, len(table), _PLACES_AT_ONCE):
            some = table[start : start + _PLACES_AT_ONCE]
            own = np.arange(start, start + len(some), dtype=np.int32)[:, None]
            # every padding becomes a number of its own
            numbered = np.where(some == -1, -1 - np.arange(some.shape[1], dtype=np.int32), some)
            ordered = np.sort(numbered, axis=1)
            for wrong, what in (
                ((some < -1) | (some >= self._places), f"places between 0 and {self._places - 1}, or −1"),
                (some == own, "others than the place itself"),
                (ordered[:, 1:] == ordered[:, :-1], "every neighbour once"),
            ):
                if wrong.any():
                    row, column = np.argwhere(wrong)[0]
                    values = ordered if wrong.shape != some.shape else some
                    raise ValueError(
                        f"{name}: wanted {what}, got {values[row, column]} in the row of place {start + row}"
                    )
        return table

    def _planned(self, epoch: int) -> Rows:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._draw(epoch)[self.rank :: self.world_size])
        return self._plan[1]

    def _draw(self, epoch: int) -> Rows:
        """(batches of all ranks, batch_size) rows."""
        rng = np.random.default_rng((self.seed, epoch))
        # how many rows of each place come in this epoch, and in which order places are seeds
        left = np.minimum(self._counts, self._batches)
        seeds = rng.permutation(np.repeat(np.arange(self._places), left))
        used = self._batches * self.batch_size
        left -= np.bincount(seeds[used:], minlength=self._places)
        seeds = seeds[:used]
        # rows of a place in random order; the first left[place] of them are used, the last first
        by_place = self._rows_by_place
        if self._counts.max() > 1:
            place = np.repeat(np.arange(self._places), self._counts)
            by_place = by_place[np.lexsort((rng.random(self.rows), place))]
        first = self._counts.cumsum() - self._counts
        batches = np.empty((self._batches, self.batch_size), dtype=np.int64)
        for number, chosen in enumerate(self._chosen_places(left, deque(seeds.tolist()), rng)):
            batches[number] = by_place[first[chosen] + left[chosen]]
        return batches

    def _chosen_places(self, left: Rows, seeds: deque[int], rng: np.random.Generator) -> Iterator[Rows]:
        """The places of every batch; `left`, rows to come by place, is counted down before each.

        Always full: a place with as many rows left as there are batches left is taken first, so that at every
        batch at least batch_size places have rows left.
        """
        most = int(left.max())
        # True: has rows left and is not in the batch. One more for −1, the padding
        free = np.append(left > 0, False)
        for remaining in range(self._batches, 0, -1):
            chosen = [np.flatnonzero(left == remaining)] if remaining <= most else []
            size = 0 if not chosen else len(chosen[0])
            avoided: set[int] = set()
            if size:
                free[chosen[0]] = False
                avoided.update(self._avoided_by(chosen[0]))
            again: list[int] = []  # seeds that are in the batch and have more rows to come
            put_off: deque[int] = deque()  # seeds that the batch avoids
            while size < self.batch_size:
                if seeds:
                    seed = seeds.popleft()
                    if left[seed] == 0:
                        continue
                    if not free[seed]:
                        again.append(seed)
                        continue
                    if seed in avoided:
                        put_off.append(seed)
                        continue
                else:
                    seed = put_off.popleft()  # nothing else remains
                    if not free[seed]:
                        again.append(seed)
                        continue
                group = self._seed_and_neighbours(seed, free, avoided, self.batch_size - size, rng)
                free[group] = False
                chosen.append(group)
                size += len(group)
            places = np.concatenate(chosen)
            left[places] -= 1
            free[places] = left[places] > 0
            seeds.extendleft(reversed([*again, *put_off]))
            yield places

    def _seed_and_neighbours(
        self, seed: int, free: NDArray[np.bool_], avoided: set[int], room: int, rng: np.random.Generator
    ) -> Rows:
        if self.neighbours is None:
            avoided.update(self._avoided_by([seed]))
            return np.array([seed])
        ranked = self.neighbours[seed]
        near, behind = ranked[: self.nearest], ranked[self.nearest :]
        behind = behind[rng.permutation(len(behind))[: self.further]]
        wanted = np.concatenate(([seed], near, behind))
        group = wanted[free[wanted]]
        if self.avoid is not None:
            kept = []
            for place in group.tolist():
                if place not in avoided:
                    kept.append(place)
                    avoided.update(self._avoided_by([place]))
                    if len(kept) == room:
                        break
            # a seed that was put off is taken all the same
            group = np.array(kept if kept and kept[0] == seed else [seed, *kept])
        return group[:room].astype(np.int64)

    def _avoided_by(self, places: Any) -> list[int]:
        return [] if self.avoid is None else self.avoid[places].ravel().tolist()


def _most_batches(counts: Rows, batch_size: int, world_size: int) -> int:
    """The most batches of distinct places, a multiple of the world size."""
    batches = int(counts.sum()) // batch_size
    batches -= batches % world_size
    while batches > 0 and np.minimum(counts, batches).sum() < batches * batch_size:
        batches = min(batches - world_size, int(np.minimum(counts, batches).sum()) // batch_size)
        batches -= batches % world_size
    if batches < 1:
        raise ValueError(
            f"rows: wanted at least a batch of {batch_size} different places for each of {world_size} "
            f"processes, got {int(counts.sum())} rows of {int((counts > 0).sum())} places"
        )
    return batches
