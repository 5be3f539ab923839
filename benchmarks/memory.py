"""Peak memory of a forward and backward pass, each taken in a process of its own.

What counts is the peak beyond that of an equal process which makes the same inputs and gradients of their
size and runs the contender on 8 × 8 pairs only: that loads its code, and with a custom operator torch's
compiler (900 modules, 150 MiB), once per process whatever the size. What the small run adds is stated apart.
On the CPU the peak is that of the resident set, see `benchmarks.fresh_process`. On a GPU it is the
allocator's own peak, exact and without a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.cases import NAIVE, Case, MemoryCase
from benchmarks.contenders import Run, backend_names, loss_run, rival_run, workspace
from benchmarks.fresh_process import MIB, answer_of, beyond, peak_mib, serve
from benchmarks.problem import Problem, make_problem
from semivario_kernels import NegativePolicy, semivariogram_info_nce


def measure_memory(
    cases: list[MemoryCase], device: torch.device, *, on_case: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of the memory table: plain numbers, one dict per case."""
    baselines: dict[tuple[Any, ...], list[float]] = {}
    rows = []
    for case in cases:
        on_case(f"memory {case.n:,} × {case.m:,}, {case.policy.kind}")
        names = [case.contender] if case.contender else backend_names(_time_case(case), device)[:1]
        if not names:
            continue  # no backend of ours but the oracle
        row = {
            "n": case.n,
            "m": case.m,
            "d": case.d,
            "e": case.e,
            "dtype": str(case.dtype).removeprefix("torch."),
            "policy": case.policy.kind,
            "contender": names[0],
            "workspace_mb": case.workspace_mb,
            "bar_mib": case.bar_mib,
            "met": None if case.bar_mib is None else False,
            "failure": None,
        }
        rows.append(row)
        if device.type == "cuda":
            _fill_in(row, *_allocated_mib(case, names[0], device))
            continue
        key = (names[0], case.n, case.m, case.d, case.e, case.dtype)
        try:
            if key not in baselines:
                baselines[key] = [_in_fresh_process(case, names[0], device, False)["peak"] for _ in range(2)]
            mib = _in_fresh_process(case, names[0], device, True)
        except RuntimeError as error:
            row["failure"] = str(error)
            continue
        _fill_in(row, baselines[key], mib["peak"], mib["first use"])
    return rows


def _fill_in(row: dict[str, Any], baseline: list[float], peak: float, first_use: float) -> None:
    row.update(beyond(baseline, peak))
    row["first_use_mib"] = first_use
    if row["bar_mib"] is not None:
        row["met"] = row["extra_mib"] <= row["bar_mib"]


def _allocated_mib(
    case: MemoryCase, contender: str, device: torch.device
) -> tuple[list[float], float, float]:
    """Baseline, peak and first use as the GPU's allocator counts them."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device) / MIB
    small = make_problem(8, 8, case.d, case.e, dtype=case.dtype, device=device)
    _run_of(contender, case, small)()
    del small
    first_use = torch.cuda.memory_allocated(device) / MIB - before  # the BLAS' workspace stays
    problem = make_problem(case.n, case.m, case.d, case.e, dtype=case.dtype, device=device)
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in problem.leaves) / MIB
    baseline = torch.cuda.memory_allocated(device) / MIB + gradients
    torch.cuda.reset_peak_memory_stats(device)
    _run_of(contender, case, problem)()
    return [baseline], peak_mib(device), first_use


def _run_of(contender: str, case: Case | MemoryCase, problem: Problem) -> Run:
    time_case = case if isinstance(case, Case) else _time_case(case)
    if contender == NAIVE:
        return rival_run(NAIVE, time_case, problem)
    return loss_run(semivariogram_info_nce, time_case, problem, backend=contender, **workspace(time_case))


def _time_case(case: MemoryCase) -> Case:
    return Case(
        "memory",
        case.n,
        case.m,
        case.d,
        case.e,
        case.policy,
        dtype=case.dtype,
        workspace_mb=case.workspace_mb,
    )


def _in_fresh_process(case: MemoryCase, contender: str, device: torch.device, runs: bool) -> dict[str, float]:
    request = {
        "sizes": [case.n, case.m, case.d, case.e],
        "dtype": str(case.dtype).removeprefix("torch."),
        "policy": asdict(case.policy),
        "contender": contender,
        "workspace_mb": case.workspace_mb,
        "runs": runs,
        "device": str(device),
    }
    answer: dict[str, float] = answer_of("benchmarks.memory", request)
    return answer


def _answer(request: dict[str, Any]) -> dict[str, float]:
    """Run what `request` asks for and return the MiB of this process."""
    device = torch.device(request["device"])
    n, m, d, e = request["sizes"]
    case = Case(
        "memory",
        n,
        m,
        d,
        e,
        NegativePolicy(**request["policy"]),
        dtype=getattr(torch, request["dtype"]),
        workspace_mb=request["workspace_mb"],
    )
    small = make_problem(8, 8, d, e, dtype=case.dtype, device=device)
    _run_of(NAIVE, case, small)()  # torch's own threads and libraries
    before = peak_mib(device)
    _run_of(request["contender"], case, small)()
    first_use = peak_mib(device) - before
    problem = make_problem(n, m, d, e, dtype=case.dtype, device=device)
    if request["runs"]:
        kept = _run_of(request["contender"], case, problem)()
    else:
        kept = tuple(torch.ones_like(leaf) for leaf in problem.leaves)  # written to, so that it is resident
    mib = {"first use": first_use, "peak": peak_mib(device)}
    del kept
    return mib


if __name__ == "__main__":
    serve(_answer)
