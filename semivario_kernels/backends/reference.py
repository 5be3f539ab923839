"""The oracle: every quantity of the definitions as one tensor, in plain torch, on any device, float64 too.

It is the measure of all other backends and is written to be read; memory is O(N·M).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from semivario_kernels.dissimilarity import arithmetic_dtype, has_image, unit_rows
from semivario_kernels.geometry import EARTH_RADIUS_KM, great_circle_km, squared_chords
from semivario_kernels.policy import PairTerms
from semivario_kernels.progress import track
from semivario_kernels.semivariance import HISTOGRAM_CELLS, BinnedSums, PairSample

if TYPE_CHECKING:
    from semivario_kernels.loss import InfoNCEProblem

TILE = 1024
NEUTRAL = (1.0, 0.0, 0.0)  # a, b and f of a positive and of a pair without an image
DUPLICATE_SQUARED_CHORD = 1e-28  # 64 nm: above the rounding of float64 unit vectors, below any real distance


def unavailable(device: torch.device) -> str | None:
    """Say why this backend cannot serve `device`; None where it can."""
    return None


def pairwise_haversine(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(N, M) km from unit vectors (N, 3) and (M, 3)."""
    return great_circle_km(p, q)


def cosine_dissimilarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(N, M) of 1 − cos from (N, E) and (M, E)."""
    return (1 - unit_rows(x) @ unit_rows(y).T).clamp(0, 2)


def topk_gallery(x: torch.Tensor, y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    dtype = arithmetic_dtype(x)
    values, indices = torch.sort(x.to(dtype) @ y.to(dtype).T, dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


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
    assert problem.p is not None
    assert problem.q is not None
    h_km = great_circle_km(problem.p.to(cosine.dtype), problem.q.to(cosine.dtype))
    untouched = positive
    if not problem.policy.reads_dissimilarity:
        terms = problem.policy.torch_terms(h_km)
    else:
        assert problem.variogram is not None
        if problem.v is None or problem.u is None:
            d = 1 - cosine
        else:
            d = cosine_dissimilarity(problem.v, problem.u).to(cosine.dtype)
            untouched = positive | ~(has_image(problem.v)[:, None] & has_image(problem.u))
        rho = problem.variogram.torch_correlation(h_km)
        gamma = problem.variogram.nugget + problem.variogram.total_psill * (1 - rho)
        terms = problem.policy.torch_terms(h_km, d, gamma, rho, problem.variogram.sill)
    return PairTerms(
        *(
            None if term is None else torch.where(untouched, value, term)
            for term, value in zip(terms, NEUTRAL, strict=True)
        )
    )


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


def binned_sums(
    v: torch.Tensor,
    p: torch.Tensor,
    u: torch.Tensor | None,
    q: torch.Tensor | None,
    chord_edges: torch.Tensor,
    wants_histogram: bool,
    sample: PairSample,
    progress: bool,
) -> BinnedSums:
    """Per-bin sums in float64 over the pairs of v (N, E), p (N, 3) with themselves, or with u and q.

    Tiles of 1,024 × 1,024 pairs, or smaller ones where a sample asks for few pairs; a sample takes random
    tiles of randomly ordered places, so that every pair is as likely as any other.
    """
    bins = len(chord_edges) - 1
    sums = torch.zeros(4, bins, dtype=torch.float64)
    counts = torch.zeros(bins, dtype=torch.int64)
    histogram = torch.zeros(bins, HISTOGRAM_CELLS, dtype=torch.int64) if wants_histogram else None
    duplicates = 0
    n, m = len(v), len(v if u is None else u)
    total = n * (n - 1) // 2 if u is None else n * m
    sampled = sample.max_pairs is not None and sample.max_pairs < total
    side = TILE if not sampled else max(32, min(TILE, math.isqrt(sample.max_pairs or 1) // 4))
    rows, columns = torch.arange(n, device=v.device), torch.arange(m, device=v.device)
    generator = torch.Generator().manual_seed(sample.seed)
    if sampled:
        rows = torch.randperm(n, generator=generator).to(v.device)
        columns = rows if u is None else torch.randperm(m, generator=generator).to(v.device)
    row_tiles, column_tiles = torch.split(rows, side), torch.split(columns, side)
    tiles = [(i, j) for i in range(len(row_tiles)) for j in range(i if u is None else 0, len(column_tiles))]
    if sampled:
        tiles = [tiles[k] for k in torch.randperm(len(tiles), generator=generator).tolist()]
    seen = 0
    for i, j in track(tiles, "binned semivariance", progress):
        a, b = row_tiles[i], column_tiles[j]
        near, _ = squared_chords(p[a], (p if q is None else q)[b])
        upper = torch.ones_like(near, dtype=torch.bool)
        if u is None and i == j:
            upper = upper.triu(diagonal=1)
        pairs = int(upper.sum())
        if sampled and seen and seen + pairs > (sample.max_pairs or 0):
            break
        seen += pairs
        d = (1 - unit_rows(v[a].double()) @ unit_rows((v if u is None else u)[b].double()).T).clamp(0, 2)
        duplicates += int((upper & (near < DUPLICATE_SQUARED_CHORD)).sum())
        bin_of = torch.bucketize(near, chord_edges, right=True) - 1
        inside = upper & (bin_of >= 0) & (bin_of < bins)
        bin_of, d, near = bin_of[inside], d[inside], near[inside]
        h_km = 2 * EARTH_RADIUS_KM * torch.atan2(near.sqrt(), (4 - near).clamp(min=0).sqrt())
        counts += torch.bincount(bin_of, minlength=bins).cpu()
        for total_of, value in zip(sums, (h_km, d, d * d, d**0.25), strict=True):
            total_of += torch.bincount(bin_of, weights=value, minlength=bins).cpu()
        if histogram is not None:
            cell = (d * (HISTOGRAM_CELLS / 2)).long().clamp(max=HISTOGRAM_CELLS - 1)
            flat = torch.bincount(bin_of * HISTOGRAM_CELLS + cell, minlength=histogram.numel())
            histogram += flat.reshape(histogram.shape).cpu()
    return BinnedSums(counts, sums[0], sums[1], sums[2], sums[3], histogram, duplicates, sampled)
