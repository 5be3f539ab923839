"""The places that look most alike: what Sample4Geo's dynamic similarity sampling draws batches from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from geoclip.sampling.geographic import Table
from semivario_kernels import topk_gallery

_QUERIES_AT_ONCE = 4096


def similarity_neighbours(
    queries: torch.Tensor, k: int = 128, references: torch.Tensor | None = None
) -> Table:
    """The k references most similar to every query by cosine, its own left out.

    Across views a query's neighbours are the references it is most easily mistaken for: Sample4Geo's dynamic
    similarity sampling (Deuser et al., 2023). Streams over the references: nothing of size N × N is held.

    Args:
        queries: (N, D) embeddings, any length.
        k: neighbours per query.
        references: (N, D) embeddings of the other view, row i that of query i; the queries themselves when
            left out.

    Returns:
        (N, k) int32 rows, most similar first, equal ones by their row; −1 where there are fewer
        than k others.

    Raises:
        ValueError: k below 1, fewer than two queries, shapes that differ, NaN or infinite embeddings.
    """
    indices, _ = most_similar(queries, k, references)
    nearest = np.full((len(indices), k), -1, dtype=np.int32)
    nearest[:, : indices.shape[1]] = indices
    return nearest


def most_similar(
    queries: torch.Tensor, k: int, references: torch.Tensor | None = None
) -> tuple[Table, NDArray[np.float32]]:
    """Rows and cosines, (N, min(k, N − 1)) each; arguments and errors of `similarity_neighbours`."""
    references = queries if references is None else references
    if k < 1:
        raise ValueError(f"k: wanted at least 1 neighbour, got {k}")
    if queries.ndim != 2 or len(queries) < 2 or references.shape != queries.shape:
        raise ValueError(
            "queries, references: wanted the same shape (N, D) with at least two rows, got "
            f"{tuple(queries.shape)} and {tuple(references.shape)}"
        )
    for name, embeddings in (("queries", queries), ("references", references)):
        if not bool(torch.isfinite(embeddings).all()):
            raise ValueError(f"{name}: wanted finite embeddings, got NaN or infinity")
    unit = torch.nn.functional.normalize(references.detach(), dim=1)
    kept = min(k, len(queries) - 1)
    rows = np.empty((len(queries), kept), dtype=np.int32)
    cosines = np.empty((len(queries), kept), dtype=np.float32)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        chunk = torch.nn.functional.normalize(queries[start : start + _QUERIES_AT_ONCE].detach(), dim=1)
        values, found = topk_gallery(chunk, unit, kept + 1)  # the own row may be among them
        others = found != torch.arange(start, start + len(chunk), device=found.device)[:, None]
        others[others.all(dim=1), -1] = False
        rows[start : start + len(chunk)] = found[others].reshape(len(chunk), kept).cpu().numpy()
        cosines[start : start + len(chunk)] = values[others].reshape(len(chunk), kept).float().cpu().numpy()
    return rows, cosines
