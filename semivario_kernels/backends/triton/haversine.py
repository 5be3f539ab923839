"""Great-circle distances of all pairs, from float32 unit vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton

from semivario_kernels.backends import tiled_matrices
from semivario_kernels.backends.triton.device import launching_on
from semivario_kernels.backends.triton.matrix_kernels import distances
from semivario_kernels.backends.triton.shipped import CAPABILITIES, ShippedKernel

Tensor = torch.Tensor

ROWS, COLUMNS = 16, 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def pairwise_haversine(p: Tensor, q: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, M) km in `dtype` from float64 unit vectors (N, 3) and (M, 3)."""
    if dtype != torch.float32:
        return tiled_matrices.pairwise_haversine(p, q, dtype)
    n, m = len(p), len(q)
    out = torch.empty(n, m, dtype=torch.float32, device=p.device)
    p_axes, q_axes = (side.T.float().contiguous() for side in (p, q))
    blocks = triton.cdiv(m, COLUMNS) * triton.cdiv(n, ROWS)
    with launching_on(out):
        distances[(blocks,)](p_axes, q_axes, out, n, m, ROWS, COLUMNS, **OPTIONS)
    return out


def shipped() -> Iterator[ShippedKernel]:
    """`distances`, which works in float32 only."""
    types = {"p": "*fp32", "q": "*fp32", "out": "*fp32", "n": "i32", "m": "i32"}
    constants = {"ROWS": ROWS, "COLUMNS": COLUMNS}
    for capability in CAPABILITIES:
        yield ShippedKernel.of("distances", distances, types, constants, OPTIONS, capability, "fp32")
