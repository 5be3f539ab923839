"""Operators whose result is a matrix or a ranking, tile by tile in torch."""

from __future__ import annotations

import math

import torch

from semivario_kernels.dissimilarity import arithmetic_dtype, unit_rows
from semivario_kernels.geometry import great_circle_km

Tensor = torch.Tensor
TILE = 1024


def pairwise_haversine(p: Tensor, q: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, M) km in `dtype` from float64 unit vectors (N, 3) and (M, 3), row block by row block."""
    out = p.new_empty(p.shape[0], q.shape[0], dtype=dtype)
    rows = max(1, 2**22 // q.shape[0])
    for block, part in zip(torch.split(out, rows), torch.split(p, rows), strict=True):
        block.copy_(great_circle_km(part, q))
    return out


def cosine_dissimilarity(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) of 1 − cos from (N, E) and (M, E), column tile by column tile."""
    out = x.new_empty(x.shape[0], y.shape[0], dtype=arithmetic_dtype(x))
    unit_x = unit_rows(x)
    for start in range(0, y.shape[0], TILE):
        torch.mm(unit_x, unit_rows(y[start : start + TILE]).T, out=out[:, start : start + TILE])
    return out.neg_().add_(1).clamp_(0, 2)


def topk_gallery(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    dtype = arithmetic_dtype(x)
    tile = max(8 * TILE, 2 * k)
    values, indices = [], []
    for rows in torch.split(x, TILE):
        queries = rows.to(dtype)
        best = queries.new_full((len(rows), 0), -math.inf)
        where = torch.empty(len(rows), 0, dtype=torch.int64, device=x.device)
        for start in range(0, y.shape[0], tile):
            scores = queries @ y[start : start + tile].to(dtype).T
            if best.shape[1] == k and bool((scores.amax(dim=1) <= best[:, -1]).all()):
                continue  # no new entry beats the k-th best, and ties go to the earlier index
            found, columns = _stable_topk(scores, min(k, scores.shape[1]))
            best, order = torch.sort(torch.cat([best, found], dim=1), dim=1, descending=True, stable=True)
            best, order = best[:, :k], order[:, :k]
            where = torch.cat([where, start + columns], dim=1).gather(1, order)
        values.append(best)
        indices.append(where)
    return torch.cat(values), torch.cat(indices)


def _stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk, with equal values in the order of their index."""
    # one more than wanted: a value that equals the k-th shows there
    values, indices = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    tied = ((values[:, 1:] == values[:, :-1]) | values[:, 1:].isnan()).any(dim=1)
    values, indices = values[:, :k], indices[:, :k]
    rows = tied.nonzero()[:, 0]
    if len(rows):
        ordered, order = torch.sort(scores[rows], dim=1, descending=True, stable=True)
        values[rows], indices[rows] = ordered[:, :k], order[:, :k]
    return values, indices
