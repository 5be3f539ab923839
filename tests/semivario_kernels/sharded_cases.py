"""Losses over ranks: the cases, what one rank does with them, and what one process makes of the whole."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from test_loss import MODEL, POLICIES, problem

from semivario_kernels import semivariogram_info_nce
from semivario_kernels.backends import tile_driver
from semivario_kernels.communication_plan import HEADER

GALLERY = ("y", "gallery_latlon", "gallery_embeddings")
FEATURES = ("x", "y", "query_embeddings", "gallery_embeddings")


@dataclass(frozen=True)
class Case:
    """One loss, split over the ranks by `queries` and `gallery`.

    Attributes:
        travels: the side that the sizes should make travel.
        scheme: "ring" forbids to gather anything.
    """

    queries: tuple[int, ...]
    gallery: tuple[int, ...]
    travels: str
    scheme: str = "gather"
    policy: str = "rectify"
    symmetric: bool = False
    reduction: str = "mean"
    dtype: torch.dtype = torch.float64
    backend: str | None = None
    extras: bool = True  # weights, excluded entries, targets of their own, label smoothing

    def arguments(self) -> dict:
        """The whole loss, on every process the same."""
        n, m = sum(self.queries), sum(self.gallery)
        g = torch.Generator().manual_seed(5)
        arguments = problem(n=n, m=m)
        for name in FEATURES:
            arguments[name] = arguments[name].detach().to(self.dtype)
        arguments["logit_scale"] = arguments["logit_scale"].detach()
        if self.symmetric:
            arguments["targets"] = torch.randperm(m, generator=g)
        elif self.extras:
            arguments["targets"] = torch.randint(0, m, (n,), generator=g)
        else:  # the default on every rank
            firsts = torch.tensor([0, *self.gallery]).cumsum(0)
            arguments["targets"] = torch.cat(
                [first + torch.arange(size) for first, size in zip(firsts[:-1], self.queries, strict=True)]
            )
        if self.extras:
            exclude = torch.randint(0, m, (n, 3), generator=g)
            exclude[(exclude == arguments["targets"][:, None]) | (torch.rand(n, 3, generator=g) < 0.3)] = -1
            arguments["exclude"] = exclude
            arguments["row_weights"] = torch.rand(n, generator=g, dtype=torch.float64) + 0.1
        return arguments

    def options(self) -> dict:
        return {
            "variogram": MODEL,
            "policy": POLICIES[self.policy][0],
            "symmetric": self.symmetric,
            "label_smoothing": 0.1 if self.extras else 0.0,
        }

    def upstream(self) -> torch.Tensor:
        """Of the rows of "none"; of the ranks' losses else."""
        return torch.linspace(0.5, 1.7, sum(self.queries), dtype=torch.float64)

    def upstream_of(self, rank: int) -> torch.Tensor:
        return self.upstream().split(self.queries)[rank] if self.reduction == "none" else (rank + 2.0) / 3


def whole(case: Case, backend: str = "reference") -> dict:
    """What one process makes of the case: the ranks' losses and the gradients of their sum."""
    arguments = case.arguments()
    leaves = [arguments[name].requires_grad_() for name in ("x", "y", "logit_scale")]
    rows = semivariogram_info_nce(**arguments, **case.options(), reduction="none", backend=backend).double()
    weights = arguments.get("row_weights", torch.ones(len(rows), dtype=torch.float64))
    shares = [
        (part.sum(), weight.sum())
        for part, weight in zip(rows.split(case.queries), weights.split(case.queries), strict=True)
    ]
    if case.reduction == "none":
        losses, total = rows.split(case.queries), (rows * case.upstream()).sum()
    else:
        factor = len(shares) / weights.sum() if case.reduction == "mean" else 1
        losses = [
            part if case.reduction == "sum" else part / weight if weight > 0 else part * 0
            for part, weight in shares
        ]
        total = sum(case.upstream_of(rank) * factor * part for rank, (part, _) in enumerate(shares))
    return {
        "losses": [loss.detach() for loss in losses],
        "gradients": torch.autograd.grad(total, leaves),
    }


def run_case(case: Case) -> dict:
    """What a rank makes of its part of the case, with the bytes that it sent."""
    from semivario_kernels import communication_plan, sharded_operator

    rank = dist.get_rank()
    arguments = {}
    for name, tensor in case.arguments().items():
        sizes = case.gallery if name in GALLERY else case.queries
        arguments[name] = tensor if name == "logit_scale" else tensor.split(sizes)[rank].clone()
    if not case.extras and not case.symmetric:
        del arguments["targets"]
    leaves = [arguments[name].requires_grad_() for name in ("x", "y", "logit_scale")]
    plans = []
    plan = communication_plan.plan_communication

    def noted(*sizes):
        plans.append((plan(*sizes), sizes[-1]))
        return plans[-1][0]

    kept = communication_plan.GATHERED_BYTES, tile_driver.ROW_BLOCK, tile_driver.COLUMN_TILE
    try:
        communication_plan.GATHERED_BYTES = 0 if case.scheme == "ring" else kept[0]
        tile_driver.ROW_BLOCK, tile_driver.COLUMN_TILE = 4, 7
        sharded_operator.plan_communication = noted
        with counted() as sent:
            loss = semivariogram_info_nce(
                **arguments,
                **case.options(),
                reduction=case.reduction,
                group=dist.group.WORLD,
                backend=case.backend,
            )
            forward = dict(sent)
            loss.backward(torch.as_tensor(case.upstream_of(rank), dtype=loss.dtype))
    finally:
        communication_plan.GATHERED_BYTES, tile_driver.ROW_BLOCK, tile_driver.COLUMN_TILE = kept
        sharded_operator.plan_communication = plan
    chosen, row_bytes = plans[0]
    visits = {
        "forward": row_bytes.sums_visits(chosen.travels),
        "backward": row_bytes.gradient_visits(chosen.travels),
    }
    if case.symmetric:  # on the CPU the targets are looked at: at how many queries each one is a positive
        visits["forward"].append(communication_plan.Visit((), 8))
    planned = {name: sum(chosen.sent_bytes(rank, v) for v in many) for name, many in visits.items()}
    header = (dist.get_world_size() - 1) * HEADER * 8
    return {
        "loss": loss.detach(),
        "gradients": [leaf.grad for leaf in leaves],
        "travels": chosen.travels,
        "scheme": chosen.scheme,
        "planned": (planned["forward"] + header, planned["backward"]),
        "sent": (forward["bytes"], sent["bytes"] - forward["bytes"]),
        "checks": sent["checks"],
    }


@contextmanager
def counted():
    """Count the bytes that this rank's collectives send to other ranks, and the all-reduces of the checks."""
    sent = {"bytes": 0, "checks": 0}
    world, rank = dist.get_world_size(), dist.get_rank()
    real = {name: getattr(dist, name) for name in ("all_gather", "all_to_all_single", "all_reduce")}
    batch = dist.batch_isend_irecv

    def all_gather(parts, own, **options):
        sent["bytes"] += (world - 1) * own.nbytes
        return real["all_gather"](parts, own, **options)

    def all_to_all_single(received, own, **options):
        rows = options["input_split_sizes"]
        sent["bytes"] += own.nbytes // max(1, sum(rows)) * (sum(rows) - rows[rank])
        return real["all_to_all_single"](received, own, **options)

    def all_reduce(tensor, **options):
        assert tensor.numel() == 1
        sent["checks"] += 1
        return real["all_reduce"](tensor, **options)

    def batch_isend_irecv(operations):
        sent["bytes"] += sum(o.tensor.nbytes for o in operations if o.op is dist.isend)
        return batch(operations)

    try:
        dist.all_gather, dist.all_to_all_single, dist.all_reduce = all_gather, all_to_all_single, all_reduce
        dist.batch_isend_irecv = batch_isend_irecv
        yield sent
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
        dist.batch_isend_irecv = batch
