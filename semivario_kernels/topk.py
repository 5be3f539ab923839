"""The best gallery entries of every query, streaming over the gallery."""

from __future__ import annotations

from typing import Any

from semivario_kernels import backends
from semivario_kernels.checks import ArrayLike, check_matrix, check_same, like_input


def topk_gallery(x: ArrayLike, y: ArrayLike, k: int, *, backend: str | None = None) -> tuple[Any, Any]:
    """The k gallery entries with the largest inner product of every query.

    Args:
        x: (N, D) query features.
        y: (M, D) gallery features, the dtype of `x`.
        k: how many, 1 … M.
        backend: a name from `available_backends()`; None picks the fastest.

    Returns:
        values: (N, k) inner products ⟨x_i, y_j⟩, falling, float64 where `x` is float64, else float32.
        indices: (N, k) int64; equal values come in the order of their index.

    Raises:
        ValueError: empty inputs, shapes that do not agree, different devices or dtypes, k outside 1 … M.
    """
    queries = check_matrix("x", x)
    gallery = check_matrix("y", y, columns=queries.shape[1])
    check_same("device", "x", queries, "y", gallery)
    check_same("dtype", "x", queries, "y", gallery)
    if not isinstance(k, int) or not 1 <= k <= gallery.shape[0]:
        raise ValueError(f"k: wanted a whole number in 1 … {gallery.shape[0]}, got {k!r}")
    values, indices = backends.load(backend, queries).topk_gallery(queries.detach(), gallery.detach(), k)
    return like_input(values, x, y), like_input(indices, x, y)
