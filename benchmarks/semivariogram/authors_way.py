"""The semivariogram as the published reference makes it: scikit-learn's full matrices, a mask per bin."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity, haversine_distances


def masked_semivariogram(
    embeddings: np.ndarray, latlon: np.ndarray, edges_rad: np.ndarray, passes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Counts and mean dissimilarity per bin, from both triangles of two N × N matrices.

    Args:
        embeddings: (N, E) of any length, float32.
        latlon: (N, 2) degrees.
        edges_rad: (K+1,) bin edges in radians.
        passes: bins whose mask is made; None makes all.

    Returns:
        counts: (K,) pairs i < j; -1 in a bin that was left out.
        gamma: (K,) mean of 1 − cos, NaN in an empty bin or one that was left out.
        seconds: of the whole, the passes' time scaled up from those that were made to all.
    """
    begin = perf_counter()
    distances = haversine_distances(np.radians(latlon))
    dissimilarity = 1 - cosine_similarity(embeddings)
    np.fill_diagonal(distances, -1)  # a place is no pair with itself
    matrices = perf_counter() - begin
    bins = len(edges_rad) - 1
    counts, gamma = np.full(bins, -1), np.full(bins, np.nan)
    made = np.arange(bins) if passes is None else passes
    for k in made:
        mask = (distances >= edges_rad[k]) & (distances < edges_rad[k + 1])
        values = dissimilarity[mask]
        counts[k] = len(values) // 2
        if len(values):
            gamma[k] = values.mean(dtype=np.float64)
    masks = perf_counter() - begin - matrices
    return counts, gamma, matrices + masks * bins / len(made)
