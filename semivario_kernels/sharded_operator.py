"""The loss over the ranks of a group as PyTorch operators: `semivario::sharded_info_nce` and its backward.

The group travels as its name. Row losses come out; weights and reductions are applied outside, and a rank's
backward pass brings its own upstream gradients: what is differentiated is the sum over the ranks.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from semivario_kernels import backends
from semivario_kernels.checks import is_checked
from semivario_kernels.communication_plan import HEADER, SUMS, RowBytes, plan_communication
from semivario_kernels.dissimilarity import arithmetic_dtype
from semivario_kernels.operator import problem_of, refuse_forward_mode, saveable, schema_arguments
from semivario_kernels.rank_exchange import Exchange, all_numbers, group_of
from semivario_kernels.sharded_loss import ShardedLoss

if TYPE_CHECKING:
    from semivario_kernels.backends.tile_driver import TileDriver
    from semivario_kernels.problem import InfoNCEProblem

Tensor = torch.Tensor
PROBLEM_ARGUMENTS = 16  # of the operators' schemas, x … normalize


def sharded_row_losses(
    problem: InfoNCEProblem,
    group: dist.ProcessGroup,
    own_targets: bool,
    averaged: bool,
    backend: str,
    workspace_mb: int | None,
) -> Tensor:
    """(N_r,) losses of this rank's queries before the galleries of all ranks, without the row weights.

    With `own_targets` the targets count from this rank's first gallery entry. With `averaged` the upstream
    gradients are those of this rank's weighted mean, and come times W·w_r/Σw: the ranks' average is then the
    gradient of the mean over all ranks' rows.
    """
    refuse_forward_mode(problem)
    grad = torch.is_grad_enabled()
    outputs = sharded_info_nce(
        *schema_arguments(problem),
        backend,
        0 if workspace_mb is None else workspace_mb,
        group.group_name,
        own_targets,
        averaged,
        grad and problem.x.requires_grad,
        grad and problem.y.requires_grad,
        grad and problem.logit_scale.requires_grad,
    )
    losses: Tensor = outputs[0]
    return losses


@torch.library.custom_op("semivario::sharded_info_nce", mutates_args=())
def sharded_info_nce(
    x: Tensor,
    y: Tensor,
    logit_scale: Tensor,
    targets: Tensor,
    query_latlon: Tensor | None,
    gallery_latlon: Tensor | None,
    v: Tensor | None,
    u: Tensor | None,
    exclude: Tensor | None,
    row_weights: Tensor | None,
    parameters: Tensor,
    policy: str,
    variogram: str,
    label_smoothing: float,
    symmetric: bool,
    normalize: bool,
    backend: str,
    workspace_mb: int,
    group: str,
    own_targets: bool,
    averaged: bool,
    need_dx: bool,
    need_dy: bool,
    need_ds: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (losses, row sums, column sums or empty, W·w_r/Σw, what the ranks told each other)."""
    problem = problem_of(
        x, y, logit_scale, targets, query_latlon, gallery_latlon, v, u, exclude, row_weights, parameters,
        policy, variogram, label_smoothing, symmetric, normalize,
    )  # fmt: skip
    ranks = group_of(group)
    table = _tell(problem, parameters, averaged, (need_dx, need_dy), ranks)
    loss = _sharded_loss(problem, table, own_targets, backend, workspace_mb, ranks)
    if is_checked(x):
        _check_together(loss, ranks)
    rows, columns = loss.sums()
    losses = loss.losses(rows, columns)
    weights = table[:, 4].contiguous().view(torch.float64)
    if averaged and not bool(weights.sum() > 0):
        raise ValueError(
            "row_weights: wanted at least one weight above 0 on one of the ranks, got only zeros"
        )
    share = len(weights) * weights[dist.get_rank(ranks)] / weights.sum()
    return (
        losses,
        rows,
        x.new_empty(0, dtype=torch.float64) if columns is None else columns,
        share.to(device=x.device, dtype=losses.dtype),
        table,
    )


@sharded_info_nce.register_fake
def _sharded_info_nce_fake(x: Tensor, y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    symmetric, group = arguments[12], arguments[16]
    losses = x.new_empty(x.shape[0], dtype=arithmetic_dtype(x))
    sums = [(x.shape[0], SUMS), (y.shape[0], SUMS) if symmetric else (0,)]
    return (
        losses,
        *(x.new_empty(shape, dtype=torch.float64) for shape in sums),
        losses.new_empty(()),
        torch.empty(group_of(group).size(), HEADER, dtype=torch.int64, device="cpu"),
    )


@torch.library.custom_op("semivario::sharded_info_nce_backward", mutates_args=())
def sharded_info_nce_backward(
    upstream: Tensor,
    rows: Tensor,
    columns: Tensor,
    table: Tensor,
    x: Tensor,
    y: Tensor,
    logit_scale: Tensor,
    targets: Tensor,
    query_latlon: Tensor | None,
    gallery_latlon: Tensor | None,
    v: Tensor | None,
    u: Tensor | None,
    exclude: Tensor | None,
    parameters: Tensor,
    policy: str,
    variogram: str,
    label_smoothing: float,
    symmetric: bool,
    normalize: bool,
    backend: str,
    workspace_mb: int,
    group: str,
    own_targets: bool,
    need_dx: bool,
    need_dy: bool,
    need_ds: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(∂x, ∂y, ∂s) of Σ upstream_i·loss_i over all ranks' rows; empty where not asked for."""
    problem = problem_of(
        x, y, logit_scale, targets, query_latlon, gallery_latlon, v, u, exclude, None, parameters,
        policy, variogram, label_smoothing, symmetric, normalize,
    )  # fmt: skip
    loss = _sharded_loss(problem, table, own_targets, backend, workspace_mb, group_of(group))
    dx, dy, ds = loss.gradient(upstream, rows, columns if symmetric else None, need_dx, need_dy, need_ds)
    if ds is not None:
        ds = ds.to(logit_scale.dtype).reshape(logit_scale.shape)
    dx, dy, ds = (x.new_empty(0) if g is None else g for g in (dx, dy, ds))
    return dx, dy, ds


@sharded_info_nce_backward.register_fake
def _sharded_info_nce_backward_fake(
    upstream: Tensor,
    rows: Tensor,
    columns: Tensor,
    table: Tensor,
    x: Tensor,
    y: Tensor,
    logit_scale: Tensor,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    need_dx, need_dy, need_ds = arguments[-3:]
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        y.new_empty(y.shape if need_dy else (0,)),
        logit_scale.new_empty(logit_scale.shape) if need_ds else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *engine, ctx.averaged, need_dx, need_dy, need_ds = inputs[PROBLEM_ARGUMENTS:]
    ctx.needs = (need_dx, need_dy, need_ds)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    _, rows, columns, share, table = output
    # all tensors but the row weights, which enter outside
    ctx.save_for_backward(share, rows, columns, table, *map(saveable, inputs[:9]), inputs[10])
    ctx.options = (*inputs[11:PROBLEM_ARGUMENTS], *engine)


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    arguments = PROBLEM_ARGUMENTS + 8
    if upstream is None:
        return (None,) * arguments
    if torch.is_grad_enabled():
        raise RuntimeError(
            "semivariogram_info_nce has no second derivative: call backward without create_graph=True"
        )
    share, *tensors = ctx.saved_tensors
    if ctx.averaged:
        upstream = upstream * share
    gradients = sharded_info_nce_backward(upstream, *tensors, *ctx.options, *ctx.needs)
    wanted = [g if need else None for g, need in zip(gradients, ctx.needs, strict=True)]
    return (*wanted, *[None] * (arguments - 3))


sharded_info_nce.register_autograd(_backward, setup_context=_setup_context)


def _tell(
    problem: InfoNCEProblem,
    parameters: Tensor,
    averaged: bool,
    needs: tuple[bool, bool],
    group: dist.ProcessGroup,
) -> Tensor:
    """(W, 5) int64 of all ranks: queries, gallery entries, excluded a row, options, bits of Σ weights."""
    tensors = (problem.x, problem.y, problem.query_latlon, problem.gallery_latlon, problem.v, problem.u)
    options = (
        [None if tensor is None else (tensor.dtype, tensor.shape[1]) for tensor in tensors],
        problem.policy.kind,
        None if problem.variogram is None else problem.variogram.signature,
        parameters.tolist(),
        problem.label_smoothing,
        problem.symmetric,
        problem.normalize,
        averaged,
        needs,
    )
    digest = int.from_bytes(hashlib.sha256(repr(options).encode()).digest()[:7])
    queries, gallery = problem.x.shape[0], problem.y.shape[0]
    excluded = 0 if problem.exclude is None else problem.exclude.shape[1]
    device = problem.x.device
    own = torch.tensor([queries, gallery, excluded, digest], device=device)
    if problem.row_weights is None:
        weight = torch.tensor([queries], dtype=torch.float64, device=device)
    else:
        weight = problem.row_weights.double().sum().reshape(1)
    table = all_numbers(torch.cat([own, weight.view(torch.int64)]), group)
    sizes = table[:, :2].sum(dim=0).tolist()
    if bool((table[:, 3] != table[0, 3]).any()):
        differing = (table[:, 3] != table[0, 3]).nonzero()[:, 0].tolist()
        raise ValueError(
            "group: wanted the same dtypes, dimensions, options and gradients on all ranks; those of ranks "
            f"{differing} are not rank 0's"
        )
    for name, size in zip(("x", "y"), sizes, strict=True):
        if size == 0:
            raise ValueError(f"{name}: wanted at least one row on one of the ranks, got none")
    if problem.symmetric and sizes[0] != sizes[1]:
        raise ValueError(
            f"symmetric: wanted as many queries as gallery entries, got {sizes[0]} and {sizes[1]} in all"
        )
    return table


def _sharded_loss(
    problem: InfoNCEProblem,
    table: Tensor,
    own_targets: bool,
    backend: str,
    workspace_mb: int,
    group: dist.ProcessGroup,
) -> ShardedLoss:
    queries, gallery, excluded = table[:, :3].T.tolist()
    rank = dist.get_rank(group)
    first = sum(gallery[:rank])
    exclude = None
    if max(excluded):  # the travelling queries' lists have one width
        exclude = problem.targets.new_full((problem.x.shape[0], max(excluded)), -1)
        if problem.exclude is not None:
            exclude[:, : problem.exclude.shape[1]] = problem.exclude
    targets = problem.targets + first if own_targets else problem.targets
    problem = replace(problem, targets=targets, exclude=exclude)
    plan = plan_communication(queries, gallery, row_bytes_of(problem))

    def make_driver(part: InfoNCEProblem) -> TileDriver:
        driver: TileDriver = backends.load(backend, part.x).driver(part, workspace_mb or None)
        return driver

    return ShardedLoss(problem, make_driver, Exchange(plan, group), first, sum(gallery))


def row_bytes_of(problem: InfoNCEProblem) -> RowBytes:
    """What a row of the problem's tensors takes."""

    def width(tensor: Tensor | None) -> int:
        return 0 if tensor is None else tensor.shape[1] * tensor.element_size()

    return RowBytes(
        features=width(problem.x),
        gradient=problem.x.shape[1] * arithmetic_dtype(problem.x).itemsize,
        embeddings=width(problem.v),
        positions=(width(problem.query_latlon), width(problem.gallery_latlon)),
        excluded=width(problem.exclude),
        symmetric=problem.symmetric,
    )


def _check_together(loss: ShardedLoss, group: dist.ProcessGroup) -> None:
    """Refuse bad values on all ranks at once, or those that are fine would wait for the others."""
    problem, error = loss.problem, None
    try:
        problem.check_values(loss.gallery_size)
    except ValueError as found:
        error = found
    _refuse_together(error, problem, group)
    if problem.symmetric:
        hits = loss.at_positives(torch.ones(problem.x.shape[0], dtype=torch.int64, device=problem.x.device))
        if bool((hits != 1).any()):
            error = ValueError(
                f"targets: wanted a permutation of 0 … {loss.gallery_size - 1} for the symmetric loss, got "
                "repeated entries"
            )
        _refuse_together(error, problem, group)


def _refuse_together(error: ValueError | None, problem: InfoNCEProblem, group: dist.ProcessGroup) -> None:
    refused = torch.tensor(error is not None, device=problem.x.device, dtype=torch.int64)
    dist.all_reduce(refused, op=dist.ReduceOp.MAX, group=group)
    if error is not None:
        raise error
    if bool(refused):
        raise ValueError("group: another rank refused its arguments; its own error says which")
