"""The best gallery entries of every query, from product tiles that are read once.

A strip of queries meets the gallery tile by tile: torch.mm writes the inner products into a reused buffer of
at most 128 MiB, `keep_best` reads each once, 4 bytes a pair. Of M columns in random order only about
K·ln(M/K) blocks of 1,024 hold a value above the K-th best and are sorted, 115 of 1,000 at K = 10 and
M = 1,000,000; torch.topk would read every pair some ten times over, as 8-byte keys. Nothing waits for the
GPU: which blocks are sorted is decided there.

For k above 128 and in float64 a stable sort of the kept and the new values does the same more slowly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton

from semivario_kernels.backends.triton.configurations import at_most_registers
from semivario_kernels.backends.triton.device import launching_on
from semivario_kernels.backends.triton.products import product_into
from semivario_kernels.backends.triton.shipped import CAPABILITIES, ShippedKernel
from semivario_kernels.backends.triton.topk_kernel import keep_best
from semivario_kernels.dissimilarity import arithmetic_dtype

Tensor = torch.Tensor

ROWS = 4096  # of a strip
PAIRS = 2**25  # of the buffer: 128 MiB in float32
BLOCK = 1024
PROGRAMS = 2048  # that keep any GPU busy; fewer rows are split by columns
WARPS = {16: 4, 128: 8}  # by K; 4 warps spill at 128
EMPTY = -(2**63)
LOWER = 2**31 - 1


def options_of(kept: int) -> dict[str, int | bool]:
    """Launch options of `keep_best`; left to itself, ptxas takes 56 registers at K = 16 and spills."""
    return {"num_warps": WARPS[kept], **at_most_registers(128), "enable_fp_fusion": True}


def topk_gallery(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    merged = _by_sorting if x.dtype == torch.float64 or k > max(WARPS) else _by_keys
    rows = min(ROWS, len(x))
    strips = [merged(part, y, k) for part in torch.split(x, rows)]
    values, indices = zip(*strips, strict=True)
    return torch.cat(values), torch.cat(indices)


def _by_keys(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n, m = len(x), len(y)
    kept = next(size for size in WARPS if size >= k)
    width = min(m, max(BLOCK, PAIRS // n))
    parts = min(triton.cdiv(PROGRAMS, n), triton.cdiv(width, 4 * BLOCK))
    buffer = torch.empty(n * width, dtype=torch.float32, device=x.device)
    best = torch.full((n, parts, kept), EMPTY, dtype=torch.int64, device=x.device)
    for start in range(0, m, width):
        columns = min(width, m - start)
        scores = product_into(buffer[: n * columns].view(n, columns), x, y[start : start + columns])
        share = triton.cdiv(columns, parts * BLOCK) * BLOCK
        with launching_on(x):
            keep_best[(n, parts)](
                scores, best, scores.stride(0), columns, share, start, kept, BLOCK, **options_of(kept)
            )
    keys = best.reshape(n, parts * kept).topk(k, dim=1).values
    rising = (keys >> 32).to(torch.int32)
    values = (rising ^ ((rising >> 31) & LOWER)).view(torch.float32)
    return values, LOWER - (keys & 0xFFFFFFFF)


def _by_sorting(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    dtype = arithmetic_dtype(x)
    width = min(len(y), max(8 * BLOCK, 2 * k))
    rows = max(1, PAIRS // 4 // (width + k))  # scores, sorted scores and their order
    values, indices = [], []
    for part in torch.split(x, rows):
        best = part.new_empty((len(part), 0), dtype=dtype)
        where = torch.empty(len(part), 0, dtype=torch.int64, device=x.device)
        for start in range(0, len(y), width):
            columns = y[start : start + width]
            scores = product_into(part.new_empty((len(part), len(columns)), dtype=dtype), part, columns)
            best, order = torch.sort(torch.cat([best, scores], dim=1), dim=1, descending=True, stable=True)
            best, order = best[:, :k], order[:, :k]
            index = torch.arange(start, start + len(columns), device=x.device).expand(len(part), -1)
            where = torch.cat([where, index], dim=1).gather(1, order)
        values.append(best)
        indices.append(where)
    return torch.cat(values), torch.cat(indices)


def shipped() -> Iterator[ShippedKernel]:
    """`keep_best` for every K."""
    types = {"scores": "*fp32", "best": "*i64", "row_stride": "i32"}
    types |= dict.fromkeys(("columns", "share", "first_index"), "i32")
    for capability in CAPABILITIES:
        for kept in WARPS:
            constants = {"K": kept, "BLOCK": BLOCK}
            label = f"fp32 K={kept}"
            yield ShippedKernel.of(
                "keep_best", keep_best, types, constants, options_of(kept), capability, label
            )
