"""Many compilations: what the cache does not know, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.aot.compilation import Record, cached, compile_kernel

PROCESSES = 2


def shipped_kernels() -> list[Any]:
    """Every configuration of every kernel, as `semivario_kernels.backends.triton.shipped` lists them."""
    from semivario_kernels.backends.triton.shipped import shipped_kernels  # needs triton

    return list(shipped_kernels())


def traits(kernel: Any) -> frozenset[str]:
    """What a compilation of `kernel` covers: its kernel on its architecture, and the words of its label."""
    return frozenset({kernel.name, f"{kernel.name} sm_{kernel.capability}", *kernel.label.split()})


def _compile(index: int) -> Record:
    return compile_kernel(shipped_kernels()[index])


def records_of(kernels: Sequence[Any], indices: Sequence[int]) -> list[Record]:
    """What is known of the kernels at `indices`, compiling in processes of their own what is not."""
    records = {index: cached(kernels[index]) for index in indices}
    missing = [index for index, record in records.items() if record is None]
    if missing:
        begin = time.monotonic()
        with ProcessPoolExecutor(
            min(PROCESSES, os.cpu_count() or 1, len(missing)), multiprocessing.get_context("spawn")
        ) as pool:
            for done, (index, record) in enumerate(
                zip(missing, pool.map(_compile, missing), strict=True), start=1
            ):
                records[index] = record
                if sys.stderr.isatty():
                    took = time.monotonic() - begin
                    print(f"\r{done} of {len(missing)} compiled, {took:.0f} s", end="", file=sys.stderr)
        if sys.stderr.isatty():
            print(file=sys.stderr)
    return [record for record in records.values() if record is not None]
