"""The loss as PyTorch operators: `semivario::info_nce` and, for per-row upstream gradients, its backward.

Their schemas take tensors, numbers and strings only. A policy and a semivariogram travel as a name and a
tensor of numbers, so that a refit does not recompile. The reference backend is plain torch and bypasses them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.autograd import forward_ad

from semivario_kernels import backends
from semivario_kernels.dissimilarity import arithmetic_dtype
from semivario_kernels.policy import PARAMETERS, NegativePolicy
from semivario_kernels.problem import InfoNCEProblem
from semivario_kernels.variogram import VariogramModel

Tensor = torch.Tensor
SCALED_ROWS = 16384  # at a time on the CPU, where a product in float32 is held before it is rounded


def row_losses(problem: InfoNCEProblem, backend: str, workspace_mb: int | None) -> Tensor:
    """(N,) losses, without the row weights."""
    if backend == "reference":
        problem.check_values()
        losses: Tensor = backends.load(backend, problem.x).info_nce(problem)
        return losses
    return _call(problem, "none", backend, workspace_mb)


def reduced_loss(problem: InfoNCEProblem, reduction: str, backend: str, workspace_mb: int | None) -> Tensor:
    """Weighted mean or sum of the losses, with the gradient made on the way."""
    return _call(problem, reduction, backend, workspace_mb)


def _call(problem: InfoNCEProblem, reduction: str, backend: str, workspace_mb: int | None) -> Tensor:
    refuse_forward_mode(problem)
    grad = torch.is_grad_enabled()
    outputs = info_nce(
        *schema_arguments(problem),
        reduction,
        backend,
        0 if workspace_mb is None else workspace_mb,
        grad and problem.x.requires_grad,
        grad and problem.y.requires_grad,
        grad and problem.logit_scale.requires_grad,
    )
    loss: Tensor = outputs[0]
    return loss


def refuse_forward_mode(problem: InfoNCEProblem) -> None:
    """Raise where forward-mode differentiation asks for what an operator would answer with 0."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    inputs = (problem.x, problem.y, problem.logit_scale)
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):  # type: ignore[no-untyped-call]
        raise RuntimeError(
            "semivariogram_info_nce has no forward-mode derivative (jvp, jacfwd): call backward, or use "
            "backend='reference'"
        )


def schema_arguments(problem: InfoNCEProblem) -> tuple[Any, ...]:
    """The problem as the operators' schemas take it; `problem_of` makes it again."""
    model = problem.variogram
    parameters = [problem.policy.parameters] + ([] if model is None else [model.parameters])
    return (
        problem.x,
        problem.y,
        problem.logit_scale,
        problem.targets,
        problem.query_latlon,
        problem.gallery_latlon,
        problem.v,
        problem.u,
        problem.exclude,
        problem.row_weights,
        torch.cat(parameters),
        problem.policy.kind,
        "" if model is None else model.signature,
        problem.label_smoothing,
        problem.symmetric,
        problem.normalize,
    )


def problem_of(
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
) -> InfoNCEProblem:
    """The problem of an operator's arguments."""
    size = len(PARAMETERS)
    return InfoNCEProblem(
        x=x.detach(),
        y=y.detach(),
        logit_scale=logit_scale.detach(),
        targets=targets,
        policy=NegativePolicy(policy, *parameters[:size].tolist()),
        variogram=VariogramModel.from_parameters(variogram, parameters[size:]) if variogram else None,
        query_latlon=query_latlon,
        gallery_latlon=gallery_latlon,
        v=v,
        u=u,
        exclude=exclude,
        label_smoothing=label_smoothing,
        symmetric=symmetric,
        normalize=normalize,
        row_weights=row_weights,
    )


@torch.library.custom_op("semivario::info_nce", mutates_args=())
def info_nce(
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
    reduction: str,
    backend: str,
    workspace_mb: int,
    need_dx: bool,
    need_dy: bool,
    need_ds: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (loss, ∂x, ∂y, ∂s, row sums, column sums); what was not asked for is empty."""
    problem = problem_of(
        x, y, logit_scale, targets, query_latlon, gallery_latlon, v, u, exclude, row_weights, parameters,
        policy, variogram, label_smoothing, symmetric, normalize,
    )  # fmt: skip
    problem.check_values()
    problem = replace(problem, gradient_dtype=None if reduction == "none" else kept_dtype(x))
    driver = backends.load(backend, x).driver(problem, workspace_mb or None)
    empty = x.new_empty(0)
    if reduction == "none":
        result = driver.run(None, False, False, False)
        columns = result.column_statistics
        return (
            result.losses,
            empty,
            empty.clone(),
            empty.clone(),
            result.row_statistics,
            empty.clone() if columns is None else columns,
        )
    dtype = arithmetic_dtype(x)
    weights = x.new_ones(x.shape[0], dtype=dtype) if row_weights is None else row_weights.to(dtype)
    if reduction == "mean":
        weights = weights / weights.sum()
    result = driver.run(weights, need_dx, need_dy, need_ds)
    ds = None if result.ds is None else result.ds.to(kept_dtype(logit_scale)).reshape(logit_scale.shape)
    gradients = (empty.clone() if g is None else g for g in (result.dx, result.dy, ds))
    return ((weights * result.losses).sum(), *gradients, empty, empty.clone())


def kept_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which the gradient of `tensor` waits for the upstream one.

    float16 would lose what a loss scale is there to save, and has no room for the scale itself.
    """
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype


@info_nce.register_fake
def _info_nce_fake(
    x: Tensor,
    y: Tensor,
    logit_scale: Tensor,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    symmetric, _, reduction, _, _, need_dx, need_dy, need_ds = arguments[-8:]
    loss_shape = (x.shape[0],) if reduction == "none" else ()
    loss = x.new_empty(loss_shape, dtype=arithmetic_dtype(x))
    none = reduction == "none"
    gradients = (
        of.new_empty(of.shape, dtype=kept_dtype(of)) if need and not none else x.new_empty(0)
        for of, need in ((x, need_dx), (y, need_dy), (logit_scale, need_ds))
    )
    return (
        loss,
        *gradients,
        x.new_empty((6, x.shape[0]), dtype=torch.float64) if none else x.new_empty(0),
        x.new_empty((6, y.shape[0]), dtype=torch.float64) if none and symmetric else x.new_empty(0),
    )


@torch.library.custom_op("semivario::info_nce_backward", mutates_args=())
def info_nce_backward(
    upstream: Tensor,
    row_statistics: Tensor,
    column_statistics: Tensor,
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
    need_dx: bool,
    need_dy: bool,
    need_ds: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(∂x, ∂y, ∂s) of Σ upstream_i·loss_i from the sums of the forward pass; empty where not asked for."""
    problem = problem_of(
        x, y, logit_scale, targets, query_latlon, gallery_latlon, v, u, exclude, None, parameters,
        policy, variogram, label_smoothing, symmetric, normalize,
    )  # fmt: skip
    driver = backends.load(backend, x).driver(problem, workspace_mb or None)
    gradients = driver.gradient(
        upstream, row_statistics, column_statistics if symmetric else None, need_dx, need_dy, need_ds
    )
    dx, dy, ds = (x.new_empty(0) if g is None else g for g in gradients)
    return dx, dy, ds.to(logit_scale.dtype).reshape(logit_scale.shape) if need_ds else ds


@info_nce_backward.register_fake
def _info_nce_backward_fake(
    upstream: Tensor,
    row_statistics: Tensor,
    column_statistics: Tensor,
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
    reduction, backend, workspace_mb, *ctx.needs = inputs[16:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or zeros as large as the gradients come in for them
    ctx.reduced = reduction != "none"
    if ctx.reduced:
        ctx.save_for_backward(*output[1:4])
        ctx.dtypes = [tensor.dtype for tensor in inputs[:3]]
    else:
        # all tensors but the row weights, which enter outside
        ctx.save_for_backward(*output[4:], *map(saveable, inputs[:9]), inputs[10])
        ctx.options = (*inputs[11:16], backend, workspace_mb)


def saveable(tensor: Tensor | None) -> Tensor | None:
    """A copy of what was made in inference mode, as frozen embeddings may be: autograd does not save it."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def _backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 22
    if torch.is_grad_enabled():
        raise RuntimeError(
            "semivariogram_info_nce has no second derivative: call backward without create_graph=True, "
            "or use backend='reference'"
        )
    if ctx.reduced:
        gradients = [
            _scaled(saved, upstream, dtype) if need else None
            for saved, dtype, need in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs, strict=True)
        ]
    else:
        rows, columns, *tensors, parameters = ctx.saved_tensors
        gradients = list(
            info_nce_backward(upstream, rows, columns, *tensors, parameters, *ctx.options, *ctx.needs)
        )
    wanted = [g if need else None for g, need in zip(gradients, ctx.needs, strict=True)]
    return (*wanted, *[None] * 19)


def _scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times the upstream one in `dtype`, multiplied in float32 at least and out of place.

    A plain backward() on the CPU needs no product, and no copy but for float16.
    """
    traced = type(upstream) is not Tensor or torch.compiler.is_compiling()
    if not traced and upstream.device.type == "cpu":
        try:
            if float(upstream) == 1:
                return gradient.to(dtype)
        except RuntimeError:  # many at once, of is_grads_batched, have no one value
            traced = True
    # as it is, a scalar would be rounded to the gradient's dtype first
    upstream = upstream.expand_as(gradient)
    if traced or gradient.ndim == 0 or gradient.dtype == upstream.dtype == dtype:
        return (gradient * upstream).to(dtype)
    scaled = torch.empty_like(gradient, dtype=dtype)
    rows = SCALED_ROWS if gradient.device.type == "cpu" else max(1, len(gradient))
    for part in zip(*(torch.split(t, rows) for t in (gradient, upstream, scaled)), strict=True):
        torch.mul(*part[:2], out=part[2])
    return scaled


info_nce.register_autograd(_backward, setup_context=_setup_context)
