"""torch only, tile by tile: memory O(N+M) wherever nothing can be compiled, on any device, float64 too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from semivario_kernels.backends.binned_torch import TorchBinning
from semivario_kernels.backends.tile_driver import TileDriver
from semivario_kernels.backends.tiled_matrices import cosine_dissimilarity, pairwise_haversine, topk_gallery
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
    return None


def binning(embeddings: Sequence[torch.Tensor], request: BinnedRequest) -> PairBinning:
    """What bins the pairs of a semivariogram of one or two sets."""
    return TorchBinning(request, arithmetic_dtype(embeddings[0]), embeddings[0].device)


def driver(problem: InfoNCEProblem, workspace_mb: int | None) -> TileDriver:
    """The walk over the tiles of one loss."""
    return TileDriver(problem, TorchEpilogue, workspace_mb)
