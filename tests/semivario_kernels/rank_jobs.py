"""What ranks do together in the tests, beside the losses' cases: each function runs on every rank."""

import os
import signal
import time

import torch
import torch.distributed as dist
from places import random_latlon
from sharded_cases import counted
from test_binned_run import clustered_latlon

from semivario_kernels import (
    NegativePolicy,
    binned_run,
    binned_semivariance,
    communication_plan,
    log_edges_km,
    semivariogram_info_nce,
    sharded_loss,
    topk_gallery,
)
from semivario_kernels.backends import binned_native, binned_torch, tile_driver
from semivario_kernels.sharded_topk import plan_topk

K = 7


def features(rows: int, seed: int, dims: int = 5) -> torch.Tensor:
    """Small whole numbers: many equal products, and all of them exact."""
    return torch.randint(-2, 3, (rows, dims), generator=torch.Generator().manual_seed(seed)).float()


def find_best(queries, gallery, scheme):
    """The best entries of this rank's queries, and the bytes that the rank sent and was to send."""
    rank = dist.get_rank()
    x, y = (features(sum(n), seed).split(n)[rank] for seed, n in enumerate((queries, gallery)))
    kept = communication_plan.GATHERED_BYTES
    communication_plan.GATHERED_BYTES = 0 if scheme == "ring" else kept
    try:
        with counted() as sent:
            values, indices = topk_gallery(x, y, K, group=dist.group.WORLD)
        plan = plan_topk(queries, gallery, K, 4 * x.shape[1])
    finally:
        communication_plan.GATHERED_BYTES = kept
    visit = communication_plan.Visit((4 * x.shape[1],), 16 * K if plan.travels == "queries" else 0)
    header = (dist.get_world_size() - 1) * 3 * 8
    return values, indices, sent["bytes"], plan.sent_bytes(rank, visit) + header, plan.travels


def towns(rows: int = 1500):
    """(v, latlon, edges) of a semivariogram with an image missing."""
    latlon = clustered_latlon(rows, 4)
    v = torch.randn(rows, 12, generator=torch.Generator().manual_seed(1)) + latlon.repeat(1, 6).float() / 40
    v[17] = 0
    return v, latlon, log_edges_km(1.0, 20100.0, 20)


class StoppedError(Exception):
    pass


def measure(group, checkpoint=None, blocks=None, dtype=torch.float32, **options):
    """A semivariogram in blocks of 128 rows; with `blocks` a rank stops after so many."""
    v, latlon, edges_km = towns()
    run_block, walked = binned_run.Walk.run_block, []

    def counting(self, number):
        if len(walked) == blocks:
            raise StoppedError
        walked.append(number)
        run_block(self, number)

    kept = (
        binned_run.CHECKPOINT_SECONDS,
        binned_native.NativeBinning.row_blocks,
        binned_torch.TorchBinning.row_blocks,
    )
    try:
        binned_run.CHECKPOINT_SECONDS, binned_run.Walk.run_block = 0.0, counting
        binned_native.NativeBinning.row_blocks = binned_torch.TorchBinning.row_blocks = (128,)
        measured = binned_semivariance(
            v.to(dtype), latlon, edges_km=edges_km, checkpoint=checkpoint, group=group, **options
        )
    finally:
        binned_run.CHECKPOINT_SECONDS, binned_native.NativeBinning.row_blocks = kept[:2]
        binned_torch.TorchBinning.row_blocks = kept[2]
        binned_run.Walk.run_block = run_block
    return measured, walked


def measure_together(checkpoint=None, blocks=None, dtype=torch.float32, **options):
    return measure(dist.group.WORLD, checkpoint, blocks, dtype, **options)


def peak_bytes(rows: int, dims: int) -> int:
    """Most memory that torch held at once beyond the shards, in a ring of `rows` queries and entries."""
    world, rank = dist.get_world_size(), dist.get_rank()
    g = torch.Generator().manual_seed(rank)
    x, y = (torch.randn(rows // world, dims, generator=g).requires_grad_() for _ in range(2))
    kept = communication_plan.GATHERED_BYTES, tile_driver.ROW_BLOCK, tile_driver.COLUMN_TILE
    communication_plan.GATHERED_BYTES, tile_driver.ROW_BLOCK, tile_driver.COLUMN_TILE = 0, 32, 32
    try:
        with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
            semivariogram_info_nce(
                x, y, None, None, 10.0, policy=NegativePolicy.none(), group=dist.group.WORLD
            ).backward()
    finally:
        communication_plan.GATHERED_BYTES, tile_driver.ROW_BLOCK, tile_driver.COLUMN_TILE = kept
    held = peak = 0
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def refused(what):
    """A mistake of rank 1 alone; every rank has to hear of it."""
    rank, n = dist.get_rank(), 4
    x, y = torch.randn(n, 6), torch.randn(n, 6 + (what == "dimensions" and rank == 1))
    latlon = random_latlon(n, rank)
    targets = torch.arange(n) + n * rank
    if rank == 1 and what == "latitude":
        latlon[2, 0] = 91.0
    if rank == 1 and what == "permutation":
        targets[0] = 0
    if what == "dimensions":
        x = torch.randn(n, y.shape[1])
    semivariogram_info_nce(
        x,
        y,
        latlon,
        latlon,
        10.0,
        policy=NegativePolicy.distance(1.0, 100.0),
        targets=targets,
        symmetric=what == "permutation",
        row_weights=torch.zeros(n) if what == "weights" else None,
        label_smoothing=0.1 if what == "options" and rank == 1 else 0.0,
        group=dist.group.WORLD,
    )


def compiled():
    """(loss, ∂x) of a loss over the group, eager and compiled as one graph."""
    x, y = features(6, 1), features(9, 2)

    def loss(x):
        return semivariogram_info_nce(
            x, y, None, None, 10.0, policy=NegativePolicy.none(), group=dist.group.WORLD
        )

    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        found.append((value.detach(), leaf.grad))
    return found


def lose_a_rank(group):
    """Rank 1 is killed between two blocks of the ring; the others go on as long as they can."""
    communication_plan.GATHERED_BYTES = 0
    part_sums, met = sharded_loss.ShardedLoss._part_sums, []

    def mortal(self, part):
        met.append(None)
        if dist.get_rank() == 1 and len(met) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return part_sums(self, part)

    sharded_loss.ShardedLoss._part_sums = mortal
    x, y = torch.randn(64, 32), torch.randn(64, 32)
    for _ in range(3):
        semivariogram_info_nce(x, y, None, None, 10.0, policy=NegativePolicy.none(), group=group)
        time.sleep(0.1)
