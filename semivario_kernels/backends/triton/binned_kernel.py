# mypy: ignore-errors
"""Binning of product tiles: squared chord in float64 → bin → count, Σh, Σd, Σd².

Grid: tiles of rows × columns as one number, the columns first. Places come sorted along a space-filling
curve, so that a program's pairs span few bins: it looks up the bins of its shortest and its longest distance
and goes through those between, summing the pairs of each out of registers; no pair is looked up by itself and
no histogram is kept. A program's sums (float32, of at most 4,096 pairs) go to int64 in units so small that
they round nothing worth mentioning: integers add up to the same in any order, so that two runs are equal bit
for bit.

Bytes a pair: 4. FLOPs a pair: 8 in float64 for the squared chord, two float64 comparisons a bin, some 20 in
float32.
"""

import triton
import triton.language as tl

from semivario_kernels.backends.triton.arithmetic import at_most, great_circle_km, positive_part

DUPLICATE_SQUARED_CHORD = tl.constexpr(1e-28)  # 64 nm
BEYOND = tl.constexpr(8.0)  # above the largest squared chord, 4
KM_UNITS = tl.constexpr(float(2**22))
D_UNITS = tl.constexpr(float(2**34))
SUMS = tl.constexpr(4)


@triton.jit
def bin_tile(
    dots,
    dot_stride,
    p,
    p_stride,
    q,
    q_stride,
    row_norms,
    column_norms,
    row_blocks,
    column_blocks,
    edges,
    sums,
    row_block_stride,
    column_block_stride,
    duplicates,
    quarter_sums,
    histogram,
    n,
    m,
    bins,
    DIAGONAL: tl.constexpr,
    QUARTERS: tl.constexpr,
    CELLS: tl.constexpr,
    EDGES: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Add the pairs of a tile to `sums` in whole units; with DIAGONAL only columns j > i count."""
    tiles = tl.cdiv(m, SIDE)
    first_row = tl.program_id(0) // tiles * SIDE
    first_column = tl.program_id(0) % tiles * SIDE
    row, column = first_row + tl.arange(0, SIDE), first_column + tl.arange(0, SIDE)
    in_row, in_column = row < n, column < m
    near = squared_distance(p, row, in_row, q, column, in_column)
    p += p_stride
    q += q_stride
    near += squared_distance(p, row, in_row, q, column, in_column)
    near += squared_distance(p + p_stride, row, in_row, q + q_stride, column, in_column)
    counted = in_row[:, None] & in_column[None, :]
    if DIAGONAL:
        counted = counted & (column[None, :] > row[:, None])

    shortest = tl.min(tl.where(counted, near, BEYOND))
    longest = tl.max(tl.where(counted, near, -1.0))
    if shortest < DUPLICATE_SQUARED_CHORD:
        same = counted & (near < DUPLICATE_SQUARED_CHORD)
        tl.atomic_add(duplicates, tl.sum(same.to(tl.int32)).to(tl.int64))
    place = tl.arange(0, EDGES)
    edge = tl.load(edges + place, mask=place <= bins, other=float("inf"))
    first_bin = tl.maximum(tl.sum((edge <= shortest).to(tl.int32)), 1).to(tl.int64)
    last_bin = tl.minimum(tl.sum((edge <= longest).to(tl.int32)), bins).to(tl.int64)

    at = dots + row.to(tl.int64)[:, None] * dot_stride + column[None, :]
    dot = tl.load(at, mask=counted, other=0.0)
    row_norm = tl.load(row_norms + row, mask=in_row, other=0.0).to(tl.float32)
    column_norm = tl.load(column_norms + column, mask=in_column, other=0.0).to(tl.float32)
    d = at_most(positive_part(1.0 - dot * (row_norm[:, None] * column_norm[None, :])), 2.0)
    h_km = great_circle_km(near.to(tl.float32), tl.maximum(4.0 - near, 0.0).to(tl.float32))

    row_block = tl.load(row_blocks + row, mask=in_row, other=-1)
    column_block = tl.load(column_blocks + column, mask=in_column, other=-1)
    top = tl.load(row_blocks + first_row).to(tl.int64)
    bottom = tl.load(row_blocks + tl.minimum(first_row + SIDE, n) - 1).to(tl.int64)
    left = tl.load(column_blocks + first_column).to(tl.int64)
    right = tl.load(column_blocks + tl.minimum(first_column + SIDE, m) - 1).to(tl.int64)
    for i in range(top, bottom + 1):
        for j in range(left, right + 1):
            between = counted & (row_block == i)[:, None] & (column_block == j)[None, :]
            for b in range(first_bin, last_bin + 1):
                inside = between & (near >= tl.load(edges + b - 1)) & (near < tl.load(edges + b))
                count = tl.sum(inside.to(tl.int32))
                if count > 0:
                    into = sums + i * row_block_stride + j * column_block_stride + b * SUMS
                    tl.atomic_add(into, count.to(tl.int64))
                    tl.atomic_add(into + 1, in_units(tl.where(inside, h_km, 0.0), KM_UNITS))
                    tl.atomic_add(into + 2, in_units(tl.where(inside, d, 0.0), D_UNITS))
                    tl.atomic_add(into + 3, in_units(tl.where(inside, d * d, 0.0), D_UNITS))
                    if QUARTERS:
                        quarter = tl.where(inside, tl.sqrt(tl.sqrt(d)), 0.0)
                        tl.atomic_add(quarter_sums + b, in_units(quarter, D_UNITS))
                    if CELLS > 0:
                        cell = tl.minimum((d * (CELLS / 2)).to(tl.int32), CELLS - 1)
                        tl.atomic_add(histogram + b * CELLS + cell, 1, mask=inside)


@triton.jit
def squared_distance(p, row, in_row, q, column, in_column):
    """Return (p_i − q_j)² of one axis, float64."""
    difference = (
        tl.load(p + row, mask=in_row, other=0.0)[:, None]
        - tl.load(q + column, mask=in_column, other=0.0)[None, :]
    )
    return difference * difference


@triton.jit
def in_units(values, UNITS: tl.constexpr):
    """Return the sum of values ≥ 0 as a whole number of units."""
    return (tl.sum(values).to(tl.float64) * UNITS + 0.5).to(tl.int64)
