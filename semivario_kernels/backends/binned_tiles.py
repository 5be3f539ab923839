"""Binned semivariance over tiles of pairs, in float64 torch: the upper triangle, or all pairs of two sets."""

from __future__ import annotations

import math

import torch

from semivario_kernels.dissimilarity import unit_rows
from semivario_kernels.geometry import EARTH_RADIUS_KM, squared_chords
from semivario_kernels.progress import track
from semivario_kernels.semivariance import HISTOGRAM_CELLS, BinnedSums, PairSample

TILE = 1024
DUPLICATE_SQUARED_CHORD = 1e-28  # 64 nm: above the rounding of float64 unit vectors, below any real distance


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
