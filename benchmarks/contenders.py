"""Who runs in a case: our backends, naive torch, open_clip, Inf-CL, and the matrix products alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.cases import COMPILED, DEFAULT_WORKSPACE, INF_CL, NAIVE, OPEN_CLIP, PRODUCTS, Case
from benchmarks.naive import naive_info_nce
from benchmarks.problem import VARIOGRAM, Problem
from semivario_kernels import available_backends, semivariogram_info_nce

# of a run: the loss, and the gradients of x, y and the logit scale where there is a backward pass
Outcome = tuple[torch.Tensor, ...]
Run = Callable[[], Outcome]
REFERENCE_PAIRS = 2**20  # the reference backend is the oracle, made to be read: it runs in small cases only


def backend_names(case: Case, device: torch.device) -> list[str]:
    """Our backends that run in `case`, fastest first."""
    small = case.n * case.m <= REFERENCE_PAIRS
    return [name for name in available_backends(device) if name != "reference" or small]


def loss_run(loss: Callable[..., torch.Tensor], case: Case, problem: Problem, **arguments: object) -> Run:
    """A call of `loss`, with its backward pass where the case has one."""

    def value() -> torch.Tensor:
        return loss(
            problem.x,
            problem.y,
            problem.query_latlon,
            problem.gallery_latlon,
            problem.logit_scale,
            variogram=VARIOGRAM,
            policy=case.policy,
            query_embeddings=problem.v,
            gallery_embeddings=problem.u,
            symmetric=case.symmetric,
            reduction=case.reduction,
            **arguments,
        )

    def forward() -> Outcome:
        with torch.no_grad():
            return (value(),)

    def step() -> Outcome:
        losses = value()
        upstream = problem.upstream.to(losses.dtype) if case.reduction == "none" else None
        return (losses.detach(), *torch.autograd.grad(losses, problem.leaves, upstream))

    return step if case.backward else forward


def workspace(case: Case) -> dict[str, int]:
    """The loss's argument, where the case bounds its workspace."""
    return {} if case.workspace_mb is None else {"workspace_mb": case.workspace_mb}


def open_clip_run(case: Case, problem: Problem) -> Run:
    """open_clip's ClipLoss on normalised features."""
    from open_clip.loss import ClipLoss

    clip_loss = ClipLoss()

    def loss(x, y, _query_latlon, _gallery_latlon, logit_scale, **_):
        return clip_loss(F.normalize(x, dim=-1), F.normalize(y, dim=-1), logit_scale)

    return loss_run(loss, case, problem)


def inf_cl_run(case: Case, problem: Problem) -> Run:
    """Inf-CL's Triton kernels (inf-cl on PyPI) on normalised features, for rows and for columns.

    They cast to float32, and want D to be a multiple of 256.
    """
    from inf_cl import cal_flash_loss

    def loss(x, y, _query_latlon, _gallery_latlon, logit_scale, *, symmetric, **_):
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        rows = cal_flash_loss(x, y, scale=logit_scale).mean()
        return (rows + cal_flash_loss(y, x, scale=logit_scale).mean()) / 2 if symmetric else rows

    return loss_run(loss, case, problem)


def products_run(case: Case, problem: Problem) -> Run:
    """The products a case cannot do without, by one torch.mm each into memory that is already there."""
    x, y = problem.x.detach(), problem.y.detach()
    pairs = x.new_empty(case.n, case.m)
    dx, dy = torch.empty_like(x), torch.empty_like(y)

    def run() -> Outcome:
        for _ in range(case.product_passes):
            if case.policy.reads_dissimilarity:
                torch.mm(problem.v, problem.u.T, out=pairs)
            torch.mm(x, y.T, out=pairs)
        if case.backward:
            torch.mm(pairs, y, out=dx)
            torch.mm(pairs.T, x, out=dy)
        return ()

    return run


def rival_run(name: str, case: Case, problem: Problem) -> Run:
    """The run of a rival by its name in `cases`."""
    if name == NAIVE:
        return loss_run(naive_info_nce, case, problem)
    if name == COMPILED:
        torch._dynamo.reset()  # the last case's graphs, whose shapes would make this one dynamic
        return loss_run(torch.compile(naive_info_nce, dynamic=False), case, problem)
    if name == OPEN_CLIP:
        return open_clip_run(case, problem)
    if name == INF_CL:
        return inf_cl_run(case, problem)
    if name == DEFAULT_WORKSPACE:
        return loss_run(semivariogram_info_nce, case, problem)
    raise ValueError(f"name: wanted a rival, got {name!r}")


def makers(case: Case, problem: Problem) -> dict[str, Callable[[], Run]]:
    """What makes the run of every contender of `case`, rivals first; making one may fail."""
    made: dict[str, Callable[[], Run]] = {
        name: lambda name=name: rival_run(name, case, problem) for name in case.rivals
    }
    made[PRODUCTS] = lambda: products_run(case, problem)
    for name in backend_names(case, problem.x.device):
        made[name] = lambda name=name: loss_run(
            semivariogram_info_nce, case, problem, backend=name, **workspace(case)
        )
    return made
