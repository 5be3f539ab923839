"""The best gallery entries of every query on the CPU: scores by torch's BLAS into a reused tile, then ranked.

Memory beside the result: the tile of scores, 4 MiB, which the ranking then finds in the caches, and the
tile's queries and entries in float32 where they are shorter. float64 is ranked by torch.
"""

from __future__ import annotations

import torch

from semivario_kernels.backends import tiled_matrices
from semivario_kernels.backends.native_epilogue import CPU, address, matrix, native_extension, place
from semivario_kernels.dissimilarity import arithmetic_dtype

Tensor = torch.Tensor
ROWS, PAIRS = 1024, 2**20  # of a tile
MOST_COLUMNS = 8192  # of a tile
MOST_ENTRIES = 2**32  # an index fills the lower half of a key


def topk_gallery(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest ⟨x_i, y_j⟩ of every row and their indices, (N, k) each, equal values by index."""
    if arithmetic_dtype(x) != torch.float32 or len(y) > MOST_ENTRIES:
        return tiled_matrices.topk_gallery(x, y, k)
    native, threads = native_extension(), torch.get_num_threads()
    values = torch.empty(len(x), k, dtype=torch.float32, device=CPU)
    indices = torch.empty(len(x), k, dtype=torch.int64, device=CPU)  # until they are read, the keys
    keys = address(indices, torch.int64, CPU)
    height = min(ROWS, len(x))
    width = min(MOST_COLUMNS, PAIRS // height, len(y))
    scores = torch.empty(height * width, dtype=torch.float32, device=CPU)
    converted = (
        None if y.dtype == torch.float32 else torch.empty(width, y.shape[1], dtype=torch.float32, device=CPU)
    )
    for top in range(0, len(x), height):
        queries = x[top : top + height].float()
        rows = slice(top, top + len(queries))
        for left in range(0, len(y), width):
            entries = y[left : left + width]
            if converted is not None:
                entries = converted[: len(entries)].copy_(entries)
            columns = slice(left, left + len(entries))
            shape = len(queries), len(entries)
            block = torch.mm(queries, entries.T, out=scores[: shape[0] * shape[1]].view(shape))
            native.rank_tile(
                *place(rows, columns), *matrix("scores", block, shape, torch.float32, CPU), keys, k, threads
            )
    native.read_ranking(keys, len(x), k, address(values, torch.float32, CPU), keys, threads)
    return values, indices
