"""Gloo processes that share one group over all the jobs of a test module."""

import multiprocessing
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

STARTED_SECONDS = 240  # a loaded machine takes long to import torch
DEAD_SECONDS = 15


def run_on_ranks(world: int, jobs: dict, folder: Path, last=None) -> list[dict]:
    """Run `jobs`, name -> (function, arguments), on every rank; what they return or raise, rank by rank.

    `last` is a job that may kill a rank; the ranks that are left report its result as "last".
    """
    context = multiprocessing.get_context("forkserver")
    # the first call of a custom operator would import torch._dynamo, in every rank anew
    context.set_forkserver_preload(["torch._dynamo", "rank_jobs"])
    processes = [
        context.Process(target=_run, args=(rank, world, jobs, last, folder), daemon=True)
        for rank in range(world)
    ]
    # a fork server of Python 3.11 knows nothing of sys.path, where the module to be loaded lies
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        for process in processes:
            process.start()
    for process in processes:
        process.join(STARTED_SECONDS)
        assert not process.is_alive(), "a rank hangs"
    found = [folder / f"rank-{rank}.pt" for rank in range(world)]
    return [torch.load(path, weights_only=False) if path.exists() else {} for path in found]


def _run(rank, world, jobs, last, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=STARTED_SECONDS),
    )
    results = {name: _outcome(job) for name, job in jobs.items()}
    _save(results, rank, folder)
    if last is not None:
        mortal = dist.new_group(timeout=timedelta(seconds=DEAD_SECONDS))
        start = time.monotonic()
        function, arguments = last
        results["last"] = _outcome((function, (mortal, *arguments)))
        results["last seconds"] = time.monotonic() - start
        _save(results, rank, folder)
        os._exit(0)
    dist.barrier()
    dist.destroy_process_group()


def _outcome(job):
    function, arguments = job
    try:
        return function(*arguments)
    except Exception as error:
        return error


def _save(results, rank, folder):
    torch.save(results, folder / f"rank-{rank}.part")
    (folder / f"rank-{rank}.part").replace(folder / f"rank-{rank}.pt")
