# mypy: ignore-errors
"""Matrices of all pairs, written once.

Grid: blocks of rows × blocks of columns as one number, the columns first, since only the first dimension of a
grid may pass 65,535. Bytes a pair: `unlikeness` reads 4 and writes 4, `distances` writes 4.
"""

import triton
import triton.language as tl

from semivario_kernels.backends.triton.arithmetic import great_circle_km, squared_chords


@triton.jit
def unlikeness(dots, x_norms, y_norms, n, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Turn ⟨x_i, y_j⟩ into 1 − ⟨x_i, y_j⟩/(|x_i|·|y_j|), in [0, 2], in place, in a contiguous (n, m)."""
    blocks = tl.cdiv(m, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    x_inverse = 1 / tl.load(x_norms + row, mask=row < n, other=1.0)
    y_inverse = 1 / tl.load(y_norms + column, mask=column < m, other=1.0)
    at = dots + row.to(tl.int64)[:, None] * m + column[None, :]
    inside = (row < n)[:, None] & (column < m)[None, :]
    cos = tl.load(at, mask=inside, other=0.0) * x_inverse[:, None] * y_inverse[None, :]
    tl.store(at, tl.minimum(tl.maximum(1 - cos, 0.0), 2.0), mask=inside)


@triton.jit
def distances(p, q, out, n, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write h in km, (n, m), of unit vectors p (3, n) and q (3, m)."""
    blocks = tl.cdiv(m, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    px, py, pz = axes_at(p, row, n)
    qx, qy, qz = axes_at(q, column, m)
    near, far = squared_chords(px[:, None], py[:, None], pz[:, None], qx[None, :], qy[None, :], qz[None, :])
    at = out + row.to(tl.int64)[:, None] * m + column[None, :]
    tl.store(at, great_circle_km(near, far), mask=(row < n)[:, None] & (column < m)[None, :])


@triton.jit
def axes_at(vectors, index, n):
    """Return x, y and z of places `index`, of (3, n)."""
    index = index.to(tl.int64)
    there = index < n
    y_axis = vectors + n
    z_axis = y_axis + n
    return (
        tl.load(vectors + index, mask=there),
        tl.load(y_axis + index, mask=there),
        tl.load(z_axis + index, mask=there),
    )
