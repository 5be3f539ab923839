"""The best gallery entries of every query: scores by cuBLAS into a reused tile, ranked as they come.

For k above 1,024, which is what a block's shared memory holds, and in float64 torch ranks the tiles:
streaming too, in memory for a tile and k entries a row, but it waits for the GPU.
"""

from __future__ import annotations

import torch

from semivario_kernels.backends import cuda_epilogue, tiled_matrices
from semivario_kernels.backends.native_epilogue import address, matrix
from semivario_kernels.dissimilarity import arithmetic_dtype

Tensor = torch.Tensor
ROWS, COLUMNS = 4096, 16384  # of a tile of scores, 256 MB
MOST_ENTRIES = 2**32  # an index fills the lower half of a key


def topk_gallery(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    if not is_served(x, y, k):
        return tiled_matrices.topk_gallery(x, y, k)
    return ranked(x, y, k)


def is_served(x: Tensor, y: Tensor, k: int) -> bool:
    """Whether the compiled ranking takes these."""
    most = cuda_epilogue.native_cuda().MOST_RANKED
    return arithmetic_dtype(x) == torch.float32 and k <= most and len(y) <= MOST_ENTRIES


def ranked(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk_gallery` by the compiled kernels; nothing waits for the GPU."""
    native, queue, device = cuda_epilogue.native_cuda(), cuda_epilogue.queue_of(x.device), x.device
    values = torch.empty(len(x), k, dtype=torch.float32, device=device)
    indices = torch.empty(len(x), k, dtype=torch.int64, device=device)
    scores = torch.empty(min(ROWS, len(x)), min(COLUMNS, len(y)), dtype=torch.float32, device=device)
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS].float()
        best = torch.zeros(len(rows), k, dtype=torch.int64, device=device)  # unsigned keys, 0 for none yet
        for first in range(0, len(y), COLUMNS):
            tile = y[first : first + COLUMNS].float()
            block = scores[: len(rows), : len(tile)]
            torch.mm(rows, tile.T, out=block)
            native.rank_tile(
                **queue,
                scores=matrix("scores", block, (len(rows), len(tile)), torch.float32, device),
                rows=len(rows),
                first_column=first,
                columns=len(tile),
                best=address(best, torch.int64, device),
                k=k,
            )
        native.read_ranking(
            **queue,
            best=address(best, torch.int64, device),
            count=best.numel(),
            values=address(values[start : start + ROWS], torch.float32, device),
            indices=address(indices[start : start + ROWS], torch.int64, device),
        )
    return values, indices
