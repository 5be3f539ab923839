"""Kernels in Triton for NVIDIA GPUs: fused epilogues between the vendor's matrix products, or all in one.

Nothing here imports Triton before a loss runs. Triton's interpreter (TRITON_INTERPRET=1) serves the CPU, for
tests. float64 inputs go through torch's arithmetic: the kernels are float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from semivario_kernels.backends.binned_torch import TorchBinning
from semivario_kernels.backends.tile_driver import TileDriver
from semivario_kernels.backends.torch_epilogue import TorchEpilogue
from semivario_kernels.backends.triton.pair_options import interprets

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

OLDEST_CAPABILITY = (8, 0)
FUSED_WORKSPACE_MB = 64


def unavailable(device: torch.device) -> str | None:
    """Say why this backend cannot serve `device`; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu" and interprets():
        return None
    if device.type != "cuda":
        return f"runs on GPUs, not on {device.type}"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return "wants compute capability 8.0 or newer"
    return None


def pairwise_haversine(p: torch.Tensor, q: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, M) km in `dtype` from float64 unit vectors (N, 3) and (M, 3)."""
    from semivario_kernels.backends.triton import haversine

    return haversine.pairwise_haversine(p, q, dtype)


def cosine_dissimilarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(N, M) of 1 − cos from (N, E) and (M, E)."""
    from semivario_kernels.backends.triton import dissimilarity

    return dissimilarity.cosine_dissimilarity(x, y)


def topk_gallery(x: torch.Tensor, y: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    from semivario_kernels.backends.triton import topk

    return topk.topk_gallery(x, y, k)


def binning(embeddings: Sequence[torch.Tensor], request: BinnedRequest) -> PairBinning:
    """What bins the pairs of a semivariogram of one or two sets."""
    dtype, device = embeddings[0].dtype, embeddings[0].device
    if dtype == torch.float64:
        return TorchBinning(request, torch.float64, device)
    from semivario_kernels.backends.triton.binned import TritonBinning

    return TritonBinning(request, dtype, device)


def driver(problem: InfoNCEProblem, workspace_mb: int | None) -> TileDriver:
    """The walk over the tiles of one loss."""
    if problem.x.dtype == torch.float64:
        return TileDriver(problem, TorchEpilogue, workspace_mb)
    from semivario_kernels.backends.triton.fused_driver import FusedDriver
    from semivario_kernels.backends.triton.strip_epilogue import TritonTileDriver

    return (
        FusedDriver(problem, workspace_mb)
        if fuses(workspace_mb) and (problem.v is None or problem.v.dtype != torch.float64)
        else TritonTileDriver(problem, workspace_mb)
    )


def fuses(workspace_mb: int | None) -> bool:
    """Whether the loss goes the fused way: where little memory is asked for.

    The vendor's products with a tile's logits in memory compute 4(D+E) + 4D FLOPs a pair at most, at the
    products' full rate; the fused way 6(D+E) + 4D and more at a lower one, but it needs neither the tiles nor
    a float32 accumulator of the gallery's gradient, which alone passes 64 MB at 32,768 × 512.
    """
    return workspace_mb is not None and workspace_mb <= FUSED_WORKSPACE_MB
