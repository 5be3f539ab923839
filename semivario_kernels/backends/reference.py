"""The oracle: every quantity of the definitions as one tensor, in plain torch, on any device, float64 too.

It is the measure of all other backends and is written to be read; memory is O(N·M).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from semivario_kernels.backends.binned_torch import TorchBinning
from semivario_kernels.dissimilarity import arithmetic_dtype, has_image, unit_rows
from semivario_kernels.geometry import great_circle_km, unit_vectors
from semivario_kernels.policy import PairTerms, pair_terms

if TYPE_CHECKING:
    from semivario_kernels.backends.binned_walk import PairBinning
    from semivario_kernels.binned_sums import BinnedRequest
    from semivario_kernels.problem import InfoNCEProblem


__all__ = [
    "binning",
    "cosine_dissimilarity",
    "info_nce",
    "pairwise_haversine",
    "topk_gallery",
    "unavailable",
]


def unavailable(device: torch.device) -> str | None:
    """Say why this backend cannot serve `device`; None where it can."""
    return None


def pairwise_haversine(p: torch.Tensor, q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, M) km in `dtype` from float64 unit vectors (N, 3) and (M, 3)."""
    return great_circle_km(p, q).to(dtype)


def cosine_dissimilarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(N, M) of 1 − cos from (N, E) and (M, E)."""
    return (1 - unit_rows(x) @ unit_rows(y).T).clamp(0, 2)


def topk_gallery(x: torch.Tensor, y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    dtype = arithmetic_dtype(x)
    values, indices = torch.sort(x.to(dtype) @ y.to(dtype).T, dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


def binning(embeddings: Sequence[torch.Tensor], request: BinnedRequest) -> PairBinning:
    """What bins the pairs of a semivariogram of one or two sets."""
    return TorchBinning(request, torch.float64, embeddings[0].device)


def info_nce(problem: InfoNCEProblem) -> torch.Tensor:
    """(N,) losses of the queries; with `symmetric` ½(row_i + column_{t_i})."""
    dtype = arithmetic_dtype(problem.x)
    with torch.autocast(problem.x.device.type, enabled=False):
        x = unit_rows(problem.x) if problem.normalize else problem.x.to(dtype)
        y = unit_rows(problem.y) if problem.normalize else problem.y.to(dtype)
        cosine = x @ y.T
        similarity = problem.logit_scale.reshape(()).to(dtype) * cosine
        with torch.no_grad():
            n, m = similarity.shape
            rows = torch.arange(n, device=x.device)
            targets = problem.targets.clamp(0, m - 1)  # an index out of range gives NaN below
            positive = torch.zeros(n, m, dtype=torch.bool, device=x.device)
            positive[rows, targets] = True
            live = _live(problem, n, m)
            terms = _pair_terms(problem, cosine, positive)
        logits = similarity if terms.factor is None else similarity * terms.factor
        if terms.log_weight is not None:
            logits = logits + terms.log_weight
        soft = terms.soft_target
        losses = _row_losses(logits, positive, live, soft, problem.label_smoothing)
        if problem.symmetric:
            columns = _row_losses(
                logits.T, positive.T, live.T, None if soft is None else soft.T, problem.label_smoothing
            )
            losses = (losses + columns[targets]) / 2
        return torch.where(targets == problem.targets, losses, torch.nan)


def _live(problem: InfoNCEProblem, n: int, m: int) -> torch.Tensor:
    live = torch.ones(n, m + 1, dtype=torch.bool, device=problem.x.device)
    if problem.exclude is not None:
        live.scatter_(1, torch.where(problem.exclude < 0, m, problem.exclude).clamp(max=m), False)
    return live[:, :m]


def _pair_terms(problem: InfoNCEProblem, cosine: torch.Tensor, positive: torch.Tensor) -> PairTerms:
    """a, b and f of every pair; positives and pairs without an image keep a = 1, b = f = 0."""
    if not problem.policy.reads_positions:
        return PairTerms()
    assert problem.query_latlon is not None
    assert problem.gallery_latlon is not None
    p, q = (unit_vectors(t).to(cosine.dtype) for t in (problem.query_latlon, problem.gallery_latlon))
    h_km = great_circle_km(p, q)
    if not problem.policy.reads_dissimilarity:
        return pair_terms(problem.policy, None, h_km, None, positive)
    if problem.v is None or problem.u is None:
        return pair_terms(problem.policy, problem.variogram, h_km, 1 - cosine, positive)
    d = cosine_dissimilarity(problem.v, problem.u).to(cosine.dtype)
    blank = ~(has_image(problem.v)[:, None] & has_image(problem.u))
    return pair_terms(problem.policy, problem.variogram, h_km, d, positive, blank)


def _row_losses(
    logits: torch.Tensor,
    positive: torch.Tensor,
    live: torch.Tensor,
    soft: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    log_sum_exp = logits.masked_fill(~live, -torch.inf).logsumexp(dim=1)
    mass = positive.to(logits.dtype)
    if soft is not None:
        mass = mass + torch.where(live, soft, 0.0)
    targets = (1 - epsilon) * mass / mass.sum(dim=1, keepdim=True)
    if epsilon:
        alive = live.to(logits.dtype)
        targets = targets + epsilon * alive / alive.sum(dim=1, keepdim=True)
    return log_sum_exp - (targets * logits).sum(dim=1)
