"""Visual dissimilarity d = 1 − cos(v, u)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from semivario_kernels.checks import ArrayLike, check_matrix, check_same, like_input


def arithmetic_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype sums are made in: float64 for float64, float32 for all others."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def has_image(embeddings: torch.Tensor) -> torch.Tensor:
    """Say per row whether it holds an image: an all-zero row stands for none. (n, E) -> (n,) bool."""
    return (embeddings != 0).any(dim=1)


def unit_rows(matrix: torch.Tensor) -> torch.Tensor:
    """L2-normalise rows in the arithmetic's dtype; an all-zero row stays zero."""
    return F.normalize(matrix.to(arithmetic_dtype(matrix)), dim=1)


def cosine_dissimilarity(x: ArrayLike, y: ArrayLike | None = None, *, backend: str | None = None) -> Any:
    """Cosine dissimilarity 1 − cos of all pairs; ½‖x−y‖² for unit vectors, the pair's semivariance.

    Args:
        x: (N, E) vectors of any length.
        y: (M, E) vectors; `x` itself when left out.
        backend: a name from `available_backends()`; None picks the fastest.

    Returns:
        (N, M) dissimilarities in [0, 2] in the arithmetic's dtype (float64 for float64, else float32), NumPy
        where NumPy came in. A zero vector has dissimilarity 1 to everything.

    Raises:
        ValueError: empty inputs, shapes that do not agree, different devices or dtypes, a backend that is
            unknown or cannot run.
    """
    from semivario_kernels import backends

    first = check_matrix("x", x).detach()
    second = first if y is None else check_matrix("y", y, columns=first.shape[1]).detach()
    check_same("device", "x", first, "y", second)
    check_same("dtype", "x", first, "y", second)
    return like_input(backends.load(backend, first).cosine_dissimilarity(first, second), x, y)
