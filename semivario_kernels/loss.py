"""The semivariogram-regularised InfoNCE loss, as a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from semivario_kernels import backends
from semivario_kernels.checks import (
    ArrayLike,
    as_tensor,
    check_indices,
    check_latlon,
    check_matrix,
    check_number,
    check_same,
    check_whole,
)
from semivario_kernels.dissimilarity import arithmetic_dtype
from semivario_kernels.operator import reduced_loss, row_losses
from semivario_kernels.policy import NegativePolicy
from semivario_kernels.problem import InfoNCEProblem
from semivario_kernels.variogram import VariogramModel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reduction = Literal["mean", "sum", "none"]
DEFAULT_POLICY = NegativePolicy.explained()


def semivariogram_info_nce(
    x: ArrayLike,
    y: ArrayLike,
    query_latlon: ArrayLike | None,
    gallery_latlon: ArrayLike | None,
    logit_scale: torch.Tensor | float,
    *,
    variogram: VariogramModel | None = None,
    policy: NegativePolicy = DEFAULT_POLICY,
    query_embeddings: ArrayLike | None = None,
    gallery_embeddings: ArrayLike | None = None,
    dissimilarity: Literal["features"] | None = None,
    targets: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    symmetric: bool = False,
    normalize: bool = True,
    row_weights: ArrayLike | None = None,
    exclude: ArrayLike | None = None,
    reduction: Reduction = "mean",
    group: ProcessGroup | None = None,
    workspace_mb: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """InfoNCE whose negatives are re-weighted by how alike they look for how far apart they are.

    With scaled similarities s·⟨x_i, y_j⟩ of the normalised features, a policy's logit factor a, log-weight b
    and soft-target mass f, positives t_i and label smoothing ε, over the live entries of every row (all but
    its excluded ones, M_i in number):

        l_ij = a_ij · s·⟨x_i, y_j⟩ + b_ij   for j ≠ t_i;      l_it = s·⟨x_i, y_t⟩
        T_ij = (1−ε)·(1[j=t_i] + f_ij) / (1 + Σ_k f_ik) + ε/M_i
        loss_i = logΣ_j exp(l_ij) − Σ_j T_ij·l_ij

    Gradients flow to `x`, `y` and `logit_scale`; a policy's terms are constants. InfoNCE: van den Oord et
    al., 2018, equation 4; its symmetric form: Radford et al., 2021, figure 3.

    Args:
        x: (N, D) query (image) features, float32, float64, bfloat16 or float16.
        y: (M, D) gallery (location) features, the dtype of `x`; under autocast both are cast to its dtype.
        query_latlon: (N, 2) positions of the queries, latitude and longitude in degrees, longitudes outside
            ±180° wrapped; None where the policy does not read positions.
        gallery_latlon: (M, 2) positions of the gallery, likewise.
        logit_scale: s that multiplies the similarities, already exponentiated: a number, or a scalar tensor.
        variogram: the fitted semivariogram, for policies that read it.
        policy: what becomes of the negatives; `NegativePolicy.none()` is plain InfoNCE.
        query_embeddings: (N, E) frozen visual embeddings of the queries, of any length; an all-zero row means
            "no image", and its pairs keep a = 1, b = f = 0 under policies that read the dissimilarity, but
            for what `explained` says of far places.
        gallery_embeddings: (M, E), the dtype of `query_embeddings`.
        dissimilarity: "features" takes d = 1 − ⟨x, y⟩ of the current features, without a gradient, instead of
            embeddings; the variogram must have been fitted on the same quantity.
        targets: (N,) int64 gallery index of every query's positive; 0 … N−1 when left out, plus the rank's
            offset with `group`.
        label_smoothing: ε in [0, 1].
        symmetric: return ½(rows + columns); the targets must be a permutation of the gallery. A column's
            weight is its positive's row weight.
        normalize: L2-normalise `x` and `y` inside.
        row_weights: (N,) weights ≥ 0; "mean" is Σ w·loss / Σ w, and "none" returns w·loss.
        exclude: (N, K) int64 gallery indices that leave a row's denominator, padded by −1; never the row's
            own positive.
        reduction: "mean", "sum" or "none", which returns (N,): of the symmetric loss ½(row_i + column_{t_i}).
        group: a torch.distributed group over whose ranks queries and gallery are split, in shards of any
            size, empty ones too; `communication_plan` says what travels. Targets and `exclude` then index the
            gallery concatenated in rank order. Every rank returns the loss of its own rows, a mean of 0 where
            it has none; the gradients it leaves, averaged over the ranks as DistributedDataParallel does, are
            those of the global mean (of the mean over ranks of the sum, for "sum" and "none"). All ranks have
            to call forward and backward.
        workspace_mb: bound on the logits' scratch memory in MiB, of all backends but "reference", which holds
            every pair; 64 on the CPU and 1,024 on a GPU when left out.
        backend: a name from `available_backends()`; None picks the fastest.

    Returns:
        A scalar, or (N,) for "none", in float64 where `x` is float64, else float32.

    Raises:
        ValueError: shapes that do not agree, empty inputs, different devices or dtypes; a policy without the
            variogram, positions or embeddings it reads; N > M without targets; a symmetric loss whose
            targets are no permutation; an option out of its range; a backend that is unknown or cannot run;
            ranks of a group that differ in dtypes, dimensions or options. Values are looked at on the CPU,
            or anywhere with SEMIVARIO_CHECK=1: NaN or infinite coordinates, latitudes outside ±90°, indices
            out of range, an excluded positive, weights that are negative, not finite or all 0. Unchecked,
            bad coordinates and targets give a loss of NaN.
        RuntimeError: a second derivative was asked for; backend "reference" has one.
    """
    sharded = group is not None
    features = check_matrix("x", x, allow_empty=sharded)
    gallery = check_matrix("y", y, columns=features.shape[1], allow_empty=sharded)
    check_same("device", "x", features, "y", gallery)
    if torch.is_autocast_enabled(features.device.type):
        features, gallery = (t.to(torch.get_autocast_dtype(t.device.type)) for t in (features, gallery))
    check_same("dtype", "x", features, "y", gallery)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: wanted 'mean', 'sum' or 'none', got {reduction!r}")
    if not isinstance(policy, NegativePolicy):
        raise ValueError(f"policy: wanted a NegativePolicy, got {type(policy).__name__}")
    if workspace_mb is not None:
        workspace_mb = check_whole("workspace_mb", workspace_mb, low=1)
    if isinstance(
        logit_scale, int | float
    ):  # filled in on the device: a copy would break a CUDA graph's capture
        scale = torch.full((), logit_scale, dtype=arithmetic_dtype(features), device=features.device)
    else:
        if not isinstance(logit_scale, torch.Tensor | np.ndarray | np.generic):
            raise ValueError(f"logit_scale: wanted a number, got {logit_scale!r}")
        scale = torch.as_tensor(logit_scale, device=features.device)
    if scale.numel() != 1 or not scale.is_floating_point():
        raise ValueError(
            f"logit_scale: wanted a floating-point scalar, got {scale.dtype} of shape {tuple(scale.shape)}"
        )
    epsilon = check_number("label_smoothing", label_smoothing, low=0, high=1)
    n = features.shape[0]
    weights = None if row_weights is None else _check_weights(row_weights, features)
    p, q = _check_positions(policy, query_latlon, gallery_latlon, features, gallery, sharded)  # degrees
    v, u = _check_dissimilarity(
        policy, variogram, dissimilarity, query_embeddings, gallery_embeddings, features, gallery, sharded
    )

    m = gallery.shape[0]
    if targets is None:
        if n > m:
            raise ValueError(
                f"targets: wanted the index of every query's positive, since there are {n} queries for "
                f"{m} gallery entries; got None"
            )
        positives = torch.arange(n, device=features.device)
    else:
        positives = check_indices("targets", targets, shape=(n,), device=features.device)
    excluded = (
        None if exclude is None else check_indices("exclude", exclude, shape=(n, -1), device=features.device)
    )
    if symmetric and n != m and not sharded:
        raise ValueError(f"symmetric: wanted as many queries as gallery entries, got {n} and {m}")

    problem = InfoNCEProblem(
        x=features,
        y=gallery,
        logit_scale=scale,
        targets=positives,
        policy=policy,
        variogram=variogram if policy.reads_dissimilarity else None,
        query_latlon=p,
        gallery_latlon=q,
        v=v,
        u=u,
        exclude=excluded,
        label_smoothing=epsilon,
        symmetric=symmetric,
        normalize=normalize,
        row_weights=weights,
    )
    name = backends.choose(backend, features)
    if group is not None:
        if name == "reference":
            raise ValueError("backend: 'reference' holds all pairs in one process and takes no group")
        from semivario_kernels.sharded_operator import sharded_row_losses

        losses = sharded_row_losses(problem, group, targets is None, reduction == "mean", name, workspace_mb)
    elif name == "reference" or reduction == "none":
        losses = row_losses(problem, name, workspace_mb)
    else:
        return reduced_loss(problem, reduction, name, workspace_mb)
    if weights is not None:
        losses = losses * weights
    if reduction == "none":
        return losses
    loss = losses.sum()
    if reduction == "mean":
        total = loss.new_full((), n) if weights is None else weights.sum()
        # a rank without rows, or with weights of 0 only, has no mean
        loss = loss / torch.where(total > 0, total, 1) if sharded else loss / total
    return loss


def _check_weights(row_weights: ArrayLike, x: torch.Tensor) -> torch.Tensor:
    weights = as_tensor("row_weights", row_weights)
    if weights.shape != x.shape[:1]:
        raise ValueError(f"row_weights: wanted shape ({x.shape[0]},), got {tuple(weights.shape)}")
    check_same("device", "x", x, "row_weights", weights)
    return weights.detach().to(arithmetic_dtype(x))


def _check_positions(
    policy: NegativePolicy,
    query_latlon: ArrayLike | None,
    gallery_latlon: ArrayLike | None,
    x: torch.Tensor,
    y: torch.Tensor,
    sharded: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    positions: list[torch.Tensor | None] = []
    for name, latlon, features, of in (
        ("query_latlon", query_latlon, x, "x"),
        ("gallery_latlon", gallery_latlon, y, "y"),
    ):
        if latlon is None:
            if policy.reads_positions:
                raise ValueError(
                    f"{name}: policy {policy.kind!r} reads distances; wanted ({features.shape[0]}, 2) "
                    "degrees, got None"
                )
            positions.append(None)
            continue
        degrees = check_latlon(name, latlon, rows=features.shape[0], values=False, allow_empty=sharded)
        check_same("device", of, features, name, degrees)
        positions.append(degrees.detach() if policy.reads_positions else None)
    return positions[0], positions[1]


def _check_dissimilarity(
    policy: NegativePolicy,
    variogram: VariogramModel | None,
    dissimilarity: str | None,
    query_embeddings: ArrayLike | None,
    gallery_embeddings: ArrayLike | None,
    x: torch.Tensor,
    y: torch.Tensor,
    sharded: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if variogram is not None and not isinstance(variogram, VariogramModel):
        raise ValueError(f"variogram: wanted a VariogramModel, got {type(variogram).__name__}")
    if dissimilarity not in (None, "features"):
        raise ValueError(f"dissimilarity: wanted None or 'features', got {dissimilarity!r}")
    names = ("query_embeddings", "gallery_embeddings")
    given = [value is not None for value in (query_embeddings, gallery_embeddings)]
    if given[0] != given[1]:
        missing = names[given.index(False)]
        raise ValueError(f"{missing}: wanted together with {names[given.index(True)]}, got None")
    v = u = None
    if query_embeddings is not None and gallery_embeddings is not None:
        if dissimilarity == "features":
            raise ValueError("dissimilarity: 'features' takes no embeddings, got query_embeddings")
        v = check_matrix(names[0], query_embeddings, rows=x.shape[0], allow_empty=sharded).detach()
        u = check_matrix(
            names[1], gallery_embeddings, rows=y.shape[0], columns=v.shape[1], allow_empty=sharded
        ).detach()
        check_same("device", "x", x, names[0], v)
        check_same("device", "x", x, names[1], u)
        check_same("dtype", names[0], v, names[1], u)
    if not policy.reads_dissimilarity:
        return None, None
    if variogram is None:
        raise ValueError(
            f"variogram: policy {policy.kind!r} reads the fitted semivariogram; wanted a VariogramModel "
            "(see fit_variogram), got None"
        )
    if v is None and dissimilarity is None:
        raise ValueError(
            f"query_embeddings: policy {policy.kind!r} reads the visual dissimilarity; wanted "
            f"({x.shape[0]}, E) embeddings here and in gallery_embeddings, or dissimilarity='features'; "
            "got None"
        )
    return v, u
