"""Blocks by measurement instead of by table: SEMIVARIO_AUTOTUNE=1, on a GPU. No GPU has run it yet.

The first call of a fused kernel with new dtypes, dimensions or options times the table's blocks and their
neighbours on that call's own tensors; the choice serves all sizes. It is kept in memory and in a file per GPU
model, Triton version and state of this package. A CUDA graph under capture takes what is known, else the
table's. Other blocks add in another order, so that a new choice may move a result's last bits. The strips'
kernels are not timed: they write over their input and wait for memory, whatever their blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from semivario_kernels.backends.triton.configurations import FusedBlocks

Launch = Callable[[FusedBlocks], object]
Timer = Callable[[Callable[[], object]], float]

SMALLEST_SIDE = 16  # that tl.dot takes


def autotunes(device: torch.device) -> bool:
    """Whether blocks are chosen by measurement."""
    return os.environ.get("SEMIVARIO_AUTOTUNE") == "1" and device.type == "cuda"


def candidates(blocks: FusedBlocks) -> list[FusedBlocks]:
    """Return the table's blocks and their neighbours, which need no more registers and tensor memory."""
    halves = [
        replace(blocks, **{side: getattr(blocks, side) // 2})
        for side in ("own", "other", "k", "dims")
        if getattr(blocks, side) >= 2 * SMALLEST_SIDE
    ]
    return [blocks, *halves, replace(blocks, num_stages=blocks.num_stages + 1)]


class Choices:
    """What was measured on one GPU model, in memory and in a file."""

    def __init__(self, file: Path, timer: Timer) -> None:
        self._file, self._timer = file, timer
        self._known = self._read()

    def fastest(
        self, key: str, wanted: Sequence[FusedBlocks], launch: Launch, *, may_time: bool
    ) -> FusedBlocks:
        """Return the fastest of `wanted`, timed where `key` is new.

        Args:
            key: kernel, dtypes, dimensions and options.
            wanted: candidates, the table's first.
            launch: makes the call with the blocks it is given; may be repeated.
            may_time: False under capture.
        """
        known = next((blocks for blocks in wanted if asdict(blocks) == self._known.get(key)), None)
        if known is not None or not may_time:
            return known or wanted[0]
        times = [self._time(blocks, launch) for blocks in wanted]
        best = wanted[times.index(min(times))]
        self._known = {**self._read(), **self._known, key: asdict(best)}
        self._write()
        return best

    def _time(self, blocks: FusedBlocks, launch: Launch) -> float:
        try:
            return self._timer(lambda: launch(blocks))
        except (OutOfResources, PTXASError):  # another candidate may fit
            return float("inf")

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        """Replace the file in one step; where none can be written, the next process measures again."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as file:
                json.dump(self._known, file, indent=1)
            os.replace(file.name, self._file)


def choices_file(gpu: str) -> Path:
    """Where the choices for a GPU model are kept: under $XDG_CACHE_HOME or ~/.cache."""
    state = hashlib.sha256(f"{gpu}\n{triton.__version__}\n".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        state.update(source.read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "semivario-kernels" / f"autotune-{state.hexdigest()[:16]}.json"


@cache
def _choices(gpu: str) -> Choices:
    return Choices(choices_file(gpu), triton.testing.do_bench)


def fastest_blocks(key: str, blocks: FusedBlocks, launch: Launch, device: torch.device) -> FusedBlocks:
    """Return the fastest of `blocks`, the table's, and their neighbours; see `Choices.fastest`."""
    return _choices(torch.cuda.get_device_name(device)).fastest(
        key, candidates(blocks), launch, may_time=not torch.cuda.is_current_stream_capturing()
    )
