"""Visual dissimilarity 1 − cos of all pairs: torch.mm, then one pass in place.

Norms are vectors; nothing is normalised or cast as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton

from semivario_kernels.backends import tiled_matrices
from semivario_kernels.backends.triton.device import launching_on
from semivario_kernels.backends.triton.matrix_kernels import unlikeness
from semivario_kernels.backends.triton.products import product_into
from semivario_kernels.backends.triton.shipped import CAPABILITIES, ShippedKernel

Tensor = torch.Tensor

SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize
ROWS, COLUMNS = 16, 256
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def cosine_dissimilarity(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) of 1 − cos from (N, E) and (M, E)."""
    if x.dtype == torch.float64:
        return tiled_matrices.cosine_dissimilarity(x, y)
    n, m = len(x), len(y)
    out = product_into(torch.empty(n, m, dtype=torch.float32, device=x.device), x, y)
    x_norms, y_norms = (
        torch.linalg.vector_norm(side, dim=1, dtype=torch.float32).clamp_(min=SMALLEST_NORM)
        for side in (x, y)
    )
    blocks = triton.cdiv(m, COLUMNS) * triton.cdiv(n, ROWS)
    with launching_on(out):
        unlikeness[(blocks,)](out, x_norms, y_norms, n, m, ROWS, COLUMNS, **OPTIONS)
    return out


def shipped() -> Iterator[ShippedKernel]:
    """`unlikeness`, which works in float32 whatever the inputs are."""
    types = {"dots": "*fp32", "x_norms": "*fp32", "y_norms": "*fp32", "n": "i32", "m": "i32"}
    constants = {"ROWS": ROWS, "COLUMNS": COLUMNS}
    for capability in CAPABILITIES:
        yield ShippedKernel.of("unlikeness", unlikeness, types, constants, OPTIONS, capability, "fp32")
