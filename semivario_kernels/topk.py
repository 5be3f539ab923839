"""The best gallery entries of every query, streaming over the gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from semivario_kernels import backends
from semivario_kernels.checks import ArrayLike, check_matrix, check_same, check_whole, like_input

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def topk_gallery(
    x: ArrayLike, y: ArrayLike, k: int, *, group: ProcessGroup | None = None, backend: str | None = None
) -> tuple[Any, Any]:
    """The k gallery entries with the largest inner product of every query.

    The features are taken as they are: rows of length 1 give cosines. No backend but "reference" holds N × M
    numbers at once.

    Args:
        x: (N, D) query features.
        y: (M, D) gallery features, the dtype of `x`.
        k: how many, 1 … M.
        group: a torch.distributed group over whose ranks queries and gallery are split, in shards of any
            size. Every rank gets the entries of its own queries, as indices of the gallery concatenated in
            rank order; all have to call.
        backend: a name from `available_backends()`; None picks the fastest. On a GPU "tiled", and "native"
            for k above 1,024 or in float64, wait for the GPU between tiles; "triton" never does.

    Returns:
        The values, (N, k) inner products ⟨x_i, y_j⟩, falling, float64 where `x` is float64, else float32; and
        their indices, (N, k) int64, equal values in the order of their index. Both without a gradient, and as
        NumPy arrays where NumPy came in.

    Raises:
        ValueError: empty inputs, shapes that do not agree, different devices or dtypes, k outside 1 … M, a
            backend that is unknown or cannot run, ranks that differ in dtype, dimensions or k.
    """
    sharded = group is not None
    queries = check_matrix("x", x, allow_empty=sharded)
    gallery = check_matrix("y", y, columns=queries.shape[1], allow_empty=sharded)
    check_same("device", "x", queries, "y", gallery)
    check_same("dtype", "x", queries, "y", gallery)
    search = backends.load(backend, queries).topk_gallery
    queries, gallery = queries.detach(), gallery.detach()
    k = check_whole("k", k, low=1, high=None if sharded else gallery.shape[0])
    with torch.autocast(queries.device.type, enabled=False):  # it would rank rounded scores
        if group is not None:
            from semivario_kernels.sharded_topk import sharded_topk

            values, indices = sharded_topk(queries, gallery, k, group, search)
        else:
            values, indices = search(queries, gallery, k)
    return like_input(values, x, y), like_input(indices, x, y)
