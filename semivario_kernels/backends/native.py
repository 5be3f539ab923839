"""Matrix products by torch's BLAS, all after them in one pass of compiled code, on the CPU and on CUDA.

The loss and the semivariogram of float64 inputs go through torch's arithmetic: the compiled one is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from semivario_kernels.backends import (
    amx_product,
    cuda_epilogue,
    cuda_ranking,
    native_epilogue,
    native_ranking,
    tiled_matrices,
)
from semivario_kernels.backends.amx_product import AmxProduct
from semivario_kernels.backends.binned_amx import AmxProducts
from semivario_kernels.backends.binned_cuda import CudaBinning
from semivario_kernels.backends.binned_native import NativeBinning
from semivario_kernels.backends.binned_products import TorchProducts
from semivario_kernels.backends.binned_torch import TorchBinning
from semivario_kernels.backends.cuda_epilogue import CudaEpilogue
from semivario_kernels.backends.native_epilogue import NativeEpilogue
from semivario_kernels.backends.tile_driver import Epilogue, FastProducts, Prepared, TileDriver
from semivario_kernels.backends.tiled_matrices import cosine_dissimilarity
from semivario_kernels.backends.torch_epilogue import TorchEpilogue
from semivario_kernels.dissimilarity import arithmetic_dtype

if TYPE_CHECKING:
    from semivario_kernels.backends.binned_walk import PairBinning
    from semivario_kernels.binned_sums import BinnedRequest
    from semivario_kernels.problem import InfoNCEProblem

__all__ = [
    "binning",
    "cosine_dissimilarity",
    "driver",
    "pairwise_haversine",
    "topk_gallery",
    "unavailable",
]


def unavailable(device: torch.device) -> str | None:
    """Say why this backend cannot serve `device`; None where it can."""
    if device.type == "cuda":
        reason: str | None = cuda_epilogue.unavailable_reason(device)
        return reason
    if device.type != "cpu":
        return f"compiled for the CPU and for CUDA, not for {device.type}"
    reason = native_epilogue.unavailable_reason()
    return reason


def detail(device: torch.device) -> str:
    """Say who makes the products of embeddings."""
    reason = "on CUDA" if device.type == "cuda" else amx_product.unavailable_reason()
    return "products on AMX tiles" if reason is None else f"products by torch: {reason}"


def _epilogue(prepared: Prepared) -> Epilogue:
    if prepared.dtype != torch.float32:
        return TorchEpilogue(prepared)
    return CudaEpilogue(prepared) if prepared.targets.is_cuda else NativeEpilogue(prepared)


def pairwise_haversine(p: torch.Tensor, q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, M) km in `dtype` from float64 unit vectors (N, 3) and (M, 3)."""
    if p.is_cuda and dtype != torch.float32:
        return tiled_matrices.pairwise_haversine(p, q, dtype)
    out = torch.empty(p.shape[0], q.shape[0], dtype=dtype, device=p.device)
    haversine_km = cuda_epilogue.haversine_km if p.is_cuda else native_epilogue.haversine_km
    haversine_km(p.to(dtype), q.to(dtype), out)
    return out


def topk_gallery(x: torch.Tensor, y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    if x.is_cuda:
        return cuda_ranking.topk_gallery(x, y, k)
    return native_ranking.topk_gallery(x, y, k)


def binning(embeddings: Sequence[torch.Tensor], request: BinnedRequest) -> PairBinning:
    """What bins the pairs of a semivariogram of one or two sets."""
    rows, columns = embeddings[0], embeddings[-1]
    if arithmetic_dtype(rows) != torch.float32:
        return TorchBinning(request, arithmetic_dtype(rows), rows.device)
    if rows.is_cuda:
        return CudaBinning(request, rows.device)
    products = AmxProducts(columns) if amx_product.takes(rows, columns) else TorchProducts(torch.float32)
    return NativeBinning(request, products)


def _fast_products(prepared: Prepared) -> FastProducts:
    """AMX products of what is constant for the gradient, and of features in less than float32."""
    found, problem = FastProducts(), prepared.problem
    if prepared.dtype != torch.float32:
        return found
    if problem.v is not None and problem.u is not None and amx_product.takes(problem.v, problem.u):
        found.dissimilarity = AmxProduct(problem.u)
    exact = problem.x.dtype == torch.float32 and not amx_product.allows_less_than_float32()
    if not exact and amx_product.takes(problem.x, problem.y):
        found.similarity = AmxProduct(problem.y)
    return found


def driver(problem: InfoNCEProblem, workspace_mb: int | None) -> TileDriver:
    """The walk over the tiles of one loss."""
    return TileDriver(problem, _epilogue, workspace_mb, _fast_products)
