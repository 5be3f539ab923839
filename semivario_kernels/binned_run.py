"""One estimate of a semivariogram from sorted places to sums: strata of lags, ranks, checkpoint.

Ranks share the row blocks of a stretch of the walk, dealt out by their pairs, and bring their sums together
at its end. A stretch is as long as two checkpoints are apart, so what a checkpoint holds is always a finished
prefix of the blocks, whoever walked them: any number of ranks goes on from it.
"""

from __future__ import annotations

import math
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels.atomic import write_atomically
from semivario_kernels.backends.binned_walk import PairBinning, Places, Walk
from semivario_kernels.binned_sums import BinnedRequest, BinnedSums
from semivario_kernels.lag_strata import lag_strata
from semivario_kernels.progress import progress_bar
from semivario_kernels.ranks import Ranks

Floats = npt.NDArray[np.float64]

CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class PairSample:
    """Multiply at most `max_pairs` pairs, a random sample of them; None takes all."""

    max_pairs: int | None = None
    seed: int = 0


@dataclass
class RunState:
    """How far a run has come: what its checkpoint holds.

    Attributes:
        total: sums of the finished strata.
        fraction: (K,) share of each bin's pairs that is measured.
        pairs: multiplied in the finished strata.
        stratum: the stratum at work.
        block: its next row block.
        block_rows: rows of its blocks, 0 before the walk.
        partial: its sums so far, None before the first block.
    """

    total: BinnedSums
    fraction: Floats
    pairs: int = 0
    stratum: int = 0
    block: int = 0
    block_rows: int = 0
    partial: BinnedSums | None = None

    def save(self, path: Path, fingerprint: str) -> None:
        """Write everything atomically; `fingerprint` says whose sums they are."""
        arrays: dict[str, Any] = {
            f"total_{name}": tensor.numpy() for name, tensor in self.total.tensors().items()
        }
        if self.partial is not None:
            arrays |= {f"partial_{name}": tensor.numpy() for name, tensor in self.partial.tensors().items()}
        for name in ("pairs", "stratum", "block", "block_rows"):
            arrays[name] = getattr(self, name)
        arrays |= {"fingerprint": fingerprint, "fraction": self.fraction}
        write_atomically(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> RunState:
        """Read what `save` wrote; ValueError where it is another run's."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                values = dict(archive)
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"checkpoint: {path} does not hold a run: {error}") from error
        if str(values.get("fingerprint")) != fingerprint:
            raise ValueError(
                f"checkpoint: {path} belongs to other places, embeddings or options; "
                "remove it to start afresh, or name another"
            )

        def sums(prefix: str) -> BinnedSums:
            names = [part.name for part in fields(BinnedSums)]
            found: dict[str, Any] = {
                name: torch.from_numpy(values[prefix + name]) if prefix + name in values else None
                for name in names
            }
            return BinnedSums(**found)

        return cls(
            total=sums("total_"),
            fraction=values["fraction"],
            pairs=int(values["pairs"]),
            stratum=int(values["stratum"]),
            block=int(values["block"]),
            block_rows=int(values["block_rows"]),
            partial=sums("partial_") if "partial_sums" in values else None,
        )


@dataclass
class BinnedRun:
    """The walks of one estimate, one for each stratum of lags.

    Attributes:
        places: one set, sorted, for its pairs with each other; or two, for the pairs between them.
        edges_km: (K+1,) bin edges.
        request: the sums wanted.
        make_binning: makes what bins the tiles of a request.
        sample: how many pairs.
        ranks: who shares the walks, with the same arguments.
    """

    places: list[Places]
    edges_km: Floats
    request: BinnedRequest
    make_binning: Callable[[BinnedRequest], PairBinning]
    sample: PairSample
    ranks: Ranks = field(default_factory=Ranks)
    strata: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.strata = [(0, self.request.bins)]
        self._ranks: list[torch.Tensor] = []
        sizes = [len(places) for places in self.places]
        if self.sample.max_pairs is not None and self.sample.max_pairs < _pairs(sizes):
            self.strata = lag_strata(self.edges_km)
            generator = torch.Generator("cpu").manual_seed(self.sample.seed)
            self._ranks = [torch.randperm(size, generator=generator, device="cpu") for size in sizes]

    @property
    def sampled(self) -> bool:
        """Whether only a sample of the pairs is measured."""
        return bool(self._ranks)

    def run(self, progress: bool, checkpoint: Path | None, fingerprint: str) -> RunState:
        """Walk all strata, or what the checkpoint leaves of them; the checkpoint is removed at the end."""
        state = self.ranks.first_does(lambda: self._start(checkpoint, fingerprint))
        walk, fraction = self._plan(state)
        expected = self.sample.max_pairs if self._ranks else sum(walk.pairs)
        shown = progress and self.ranks.is_first
        with progress_bar("binned semivariance", expected or 0, "pairs", shown) as advance:
            advance(state.pairs)
            while True:
                if state.partial is not None and self.ranks.is_first:
                    walk.binning.start_from(state.partial)
                advance(sum(walk.pairs[: state.block]))
                self._walk_stratum(walk, state, advance, checkpoint, fingerprint)
                self._finish(state, walk, fraction)
                if state.stratum == len(self.strata):
                    break
                if checkpoint is not None and self.ranks.is_first:
                    state.save(checkpoint, fingerprint)
                walk, fraction = self._plan(state)
        if checkpoint is not None and self.ranks.is_first:
            checkpoint.unlink(missing_ok=True)
        return state

    def _start(self, checkpoint: Path | None, fingerprint: str) -> RunState:
        if checkpoint is not None and checkpoint.exists():
            return RunState.load(checkpoint, fingerprint)
        return RunState(BinnedSums.empty(self.request), np.ones(self.request.bins))

    def _walk_stratum(
        self,
        walk: Walk,
        state: RunState,
        advance: Callable[[int], None],
        checkpoint: Path | None,
        fingerprint: str,
    ) -> None:
        """Walk the blocks that the state leaves; the sums stay in the binnings of the ranks."""
        started, walked = time.monotonic(), 0
        budget: float = math.inf if checkpoint is None else 0  # pairs to the next checkpoint
        while state.block < len(walk.pairs):
            pairs = _stretch(walk.pairs[state.block :], budget, self.ranks.size)
            own = self.ranks.dealt(pairs)
            for done, piece in enumerate(own):
                walk.run_block(state.block + piece)
                # all ranks are about as far as this one
                advance(sum(pairs) * (done + 1) // len(own) - sum(pairs) * done // len(own))
            state.block += len(pairs)
            walked += sum(pairs)
            if checkpoint is None or state.block >= len(walk.pairs):
                continue
            seconds = self.ranks.first_does(lambda: time.monotonic() - started)
            is_trial = (
                budget == 0 and seconds < CHECKPOINT_SECONDS
            )  # how fast it goes shows after a few blocks
            budget = walked / seconds * CHECKPOINT_SECONDS
            if is_trial:
                continue
            state.partial = walk.binning.totals(self.ranks.add_up)
            if self.ranks.is_first:
                state.save(checkpoint, fingerprint)

    def _plan(self, state: RunState) -> tuple[Walk, float]:
        """The walk of the state's stratum, and the share of its pairs that it measures."""
        first, last = self.strata[state.stratum]
        request = self.request.between(first, last)
        binning, reach = self.make_binning(request), float(request.chord_edges[-1])
        if not self._ranks or self.sample.max_pairs is None:
            walk = Walk(self.places, reach, binning, state.block_rows or None)
            state.block_rows = walk.block_rows
            return walk, 1.0
        walk = Walk(self.places, reach, binning)
        # what the shorter lags left over goes to the longer ones
        budget = max(0, self.sample.max_pairs - state.pairs) * (last - first) / (self.request.bins - first)
        sizes = wanted = [len(places) for places in self.places]
        share = 1.0
        while sum(walk.pairs) > budget and max(wanted) > 2:
            share *= 0.98 * math.sqrt(budget / sum(walk.pairs))
            wanted = [max(2, int(share * size)) for size in sizes]
            subsets = [
                places.subset(rank.to(places.index.device) < size)
                for places, rank, size in zip(self.places, self._ranks, wanted, strict=True)
            ]
            walk = Walk(subsets, reach, binning)
        if state.block_rows not in (0, walk.block_rows):  # and with them perhaps another sample
            raise ValueError(
                f"checkpoint: wanted blocks of {walk.block_rows} rows, got those of another version, "
                f"{state.block_rows}; remove it to start afresh"
            )
        state.block_rows = walk.block_rows
        return walk, _pairs(wanted) / _pairs(sizes)

    def _finish(self, state: RunState, walk: Walk, fraction: float) -> None:
        """Add a stratum's sums to the total and move to the next."""
        walk.binning.products.release()
        first, last = self.strata[state.stratum]
        found = walk.binning.totals(self.ranks.add_up)
        state.total.sums[:, :, first + 1 : last + 1] = found.sums[:, :, 1:-1]
        if state.stratum == 0:  # the one with the most places
            state.total.duplicates = found.duplicates
        for name in ("quarter_sums", "histogram"):
            total, part = getattr(state.total, name), getattr(found, name)
            if total is not None and part is not None:
                total[first + 1 : last + 1] = part[1:-1]
        state.fraction[first:last] = fraction
        state.pairs += sum(walk.pairs)
        state.stratum, state.block, state.block_rows, state.partial = state.stratum + 1, 0, 0, None


def _stretch(pairs: list[int], budget: float, least: int) -> list[int]:
    """The first blocks' pairs, up to the budget, and at least so many blocks."""
    taken = 0
    for blocks, more in enumerate(pairs):
        if blocks >= least and taken + more > budget:
            return pairs[:blocks]
        taken += more
    return pairs


def _pairs(sizes: list[int]) -> int:
    return sizes[0] * sizes[1] if len(sizes) == 2 else sizes[0] * (sizes[0] - 1) // 2
