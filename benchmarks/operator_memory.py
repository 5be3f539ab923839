"""Peak memory of an operator's contenders, each in a process of its own, see `benchmarks.fresh_process`.

All processes run all contenders at a tiny size and make the same inputs: one baseline serves all.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.fresh_process import answer_of, beyond, peak_mib, serve
from benchmarks.operator_cases import OPERATORS, Make

TINY = (16, 48)
AT_ONCE = 2  # processes: they wait for their imports most of the time, and memory does not hang on the clock


def measure_peaks(make: Make, n: int, m: int, contenders: list[str]) -> dict[str, dict[str, Any]]:
    """Baseline, peak and extra MiB by contender; "failure" says why there is none.

    Args:
        make: one of `OPERATORS`.
        n: queries, as `make` takes them.
        m: gallery entries.
        contenders: names of those that can run.
    """

    def peak_of(contender: str | None) -> float | RuntimeError:
        request = {"operator": make.__name__, "n": n, "m": m, "known": contenders, "contender": contender}
        try:
            return float(answer_of("benchmarks.operator_memory", request))
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        # a baseline before and one after the others, so that the resolution holds what drifts meanwhile
        first, *peaks, last = pool.map(peak_of, [None, *contenders, None])
    rows: dict[str, dict[str, Any]] = {}
    for name, peak in zip(contenders, peaks, strict=True):
        broken = [str(taken) for taken in (first, last, peak) if isinstance(taken, RuntimeError)]
        rows[name] = {"failure": broken[0]} if broken else {"failure": None} | beyond([first, last], peak)
    return rows


def _answer(request: dict[str, Any]) -> float:
    """Run what `request` asks for and return the peak MiB of this process."""
    make = next(make for make in OPERATORS if make.__name__ == request["operator"])
    with make(*TINY) as tiny:  # the code they load and the threads they start
        for name in request["known"]:
            tiny.runs[name]()
    with make(request["n"], request["m"]) as operator:
        if request["contender"] is not None:
            operator.runs[request["contender"]]()
    return peak_mib(torch.device("cpu"))


if __name__ == "__main__":
    serve(_answer)
