"""The cases of the scaling benchmark, measured by processes that wait for each other."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.problem import VARIOGRAM, make_problem
from semivario_kernels import (
    NegativePolicy,
    binned_semivariance,
    communication_plan,
    log_edges_km,
    semivariogram_info_nce,
)

RANKS = 2
POLICY = NegativePolicy.explained()

Work = Callable[[Any], object]  # takes the group


def measure_rank(
    rank: int, folder: Path, cores: list[int], rounds: int, loss: dict[str, int], places: dict[str, int]
) -> None:
    """Measure all cases as one of the processes; the first one writes them to `folder`/cases.json."""
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    both, alone = dist.group.WORLD, dist.new_group([0])
    cases = []
    for name, prepare in (
        ("loss, gathered", lambda: _loss(rank, loss, communication_plan.GATHERED_BYTES)),
        ("loss, ring", lambda: _loss(rank, loss, 0)),
        ("semivariogram", lambda: _semivariogram(places)),
    ):
        whole, share = prepare()
        seconds: dict[str, list[float]] = {"one": [], "two": [], "without_group": []}
        for round_ in range(rounds + 1):  # the first one warms up
            took = {"two": _timed(share, both)}
            if rank == 0:
                took["one"] = _timed(whole, alone, wait=False)
                took["without_group"] = _timed(whole, None, wait=False)
            dist.barrier()
            if round_ and rank == 0:
                for key, value in took.items():
                    seconds[key].append(value)
        if rank == 0:
            speedup = statistics.median(seconds["one"]) / statistics.median(seconds["two"])
            cases.append({"name": name, **seconds, "speedup": speedup})
    if rank == 0:
        (folder / "cases.json").write_text(json.dumps(cases))
    dist.barrier()
    dist.destroy_process_group()


def _timed(work: Work, group: Any, *, wait: bool = True) -> float:
    if wait:
        dist.barrier()
    start = time.perf_counter()
    work(group)
    if wait:
        dist.barrier()
    return time.perf_counter() - start


def _loss(rank: int, sizes: dict[str, int], gathered_bytes: int) -> tuple[Work, Work]:
    """The whole loss in one process, and this rank's half of it."""
    communication_plan.GATHERED_BYTES = gathered_bytes
    problem = make_problem(sizes["n"], sizes["m"], sizes["d"], sizes["e"])
    targets = torch.arange(sizes["n"])

    def over(queries: slice, gallery: slice) -> Work:
        x, y = problem.x.detach()[queries].clone(), problem.y.detach()[gallery].clone()
        leaves = x.requires_grad_(), y.requires_grad_(), problem.logit_scale

        def step(group: Any) -> None:
            for leaf in leaves:
                leaf.grad = None
            semivariogram_info_nce(
                x,
                y,
                problem.query_latlon[queries],
                problem.gallery_latlon[gallery],
                problem.logit_scale,
                variogram=VARIOGRAM,
                policy=POLICY,
                query_embeddings=problem.v[queries],
                gallery_embeddings=problem.u[gallery],
                targets=targets[queries],
                group=group,
            ).backward()

        return step

    halves = (slice(size * rank // RANKS, size * (rank + 1) // RANKS) for size in (sizes["n"], sizes["m"]))
    return over(slice(None), slice(None)), over(*halves)


def _semivariogram(sizes: dict[str, int]) -> tuple[Work, Work]:
    problem = make_problem(1, sizes["n"], 1, sizes["e"])
    edges_km = log_edges_km(10.0, 20_016.0, sizes["bins"])

    def measure(group: Any) -> None:
        binned_semivariance(problem.u, problem.gallery_latlon, edges_km=edges_km, group=group)

    return measure, measure
