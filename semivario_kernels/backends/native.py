"""Matrix products by torch's BLAS, everything after them in one pass of compiled SIMD code, on the CPU.

float64 inputs go through torch's arithmetic: the compiled one is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from semivario_kernels.backends import tiled_matrices
from semivario_kernels.backends.binned_tiles import binned_sums
from semivario_kernels.backends.native_epilogue import NativeEpilogue, haversine_km, unavailable_reason
from semivario_kernels.backends.tile_driver import Epilogue, Prepared, TileDriver
from semivario_kernels.backends.tiled_matrices import cosine_dissimilarity, topk_gallery
from semivario_kernels.backends.torch_epilogue import TorchEpilogue

if TYPE_CHECKING:
    from semivario_kernels.problem import InfoNCEProblem

__all__ = [
    "binned_sums",
    "cosine_dissimilarity",
    "driver",
    "pairwise_haversine",
    "topk_gallery",
    "unavailable",
]


def unavailable(device: torch.device) -> str | None:
    """Say why this backend cannot serve `device`; None where it can."""
    if device.type != "cpu":
        return f"compiled for the CPU only, not for {device.type}"
    reason: str | None = unavailable_reason()
    return reason


def _epilogue(prepared: Prepared) -> Epilogue:
    return NativeEpilogue(prepared) if prepared.dtype == torch.float32 else TorchEpilogue(prepared)


def pairwise_haversine(p: torch.Tensor, q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, M) km in `dtype` from float64 unit vectors (N, 3) and (M, 3)."""
    if dtype != torch.float32:
        return tiled_matrices.pairwise_haversine(p, q, dtype)
    out = torch.empty(p.shape[0], q.shape[0])
    haversine_km(p.float(), q.float(), out)
    return out


def driver(problem: InfoNCEProblem, workspace_mb: int | None) -> TileDriver:
    """The walk over the tiles of one loss."""
    return TileDriver(problem, _epilogue, workspace_mb)
