"""Hard negatives and false negatives of every place, told apart by a fitted semivariogram."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geoclip.coordinates import check_latlon
from geoclip.metrics import great_circle_km
from geoclip.sampling.geographic import Table
from geoclip.sampling.similarity import most_similar
from semivario_kernels import NegativePolicy, VariogramModel

_ROWS_AT_ONCE = 4096
_DEFAULT_POLICY = NegativePolicy.explained(hard=1.0, false=1.0, far=0.0)


class SurpriseNeighbours(NamedTuple):
    """Two tables of rows, the strongest first, padded by −1.

    Attributes:
        hard: (N, k) int32, alike although far: a batch should hold them together.
        false: (N, k) int32, alike because near: a batch should not.
    """

    hard: Table
    false: Table


def surprise_neighbours(
    embeddings: torch.Tensor,
    latlon: NDArray[np.float64],
    variogram: VariogramModel,
    k: int = 128,
    *,
    candidates: int = 512,
    policy: NegativePolicy = _DEFAULT_POLICY,
    references: torch.Tensor | None = None,
) -> SurpriseNeighbours:
    """Rank the places that look like each place by how surprising that is at their distance.

    With surprise e = γ(h) − d, the policy's log-weight says what a pair is: above 0 a hard negative, below 0
    a false one. γ levels off with distance, so that the most surprising pairs are among the most alike: the
    `candidates` of smallest d are ranked, found by a streaming exact search.

    Args:
        embeddings: (N, E) frozen visual embeddings, those that the semivariogram was measured on.
        latlon: (N, 2) latitude and longitude in degrees.
        variogram: the fitted semivariogram.
        k: neighbours per row and table.
        candidates: most similar rows that are ranked, at least k.
        policy: one whose log-weight reads γ.
        references: (N, E) embeddings of the other view, row i that of place i, where the semivariogram was
            measured across views: d is then between a place's embedding and another's reference.

    Returns:
        Both tables; a row of either may be all −1.

    Raises:
        ValueError: embeddings as in `similarity_neighbours`, latlon that is not (N, 2) finite degrees,
            candidates below k, or a policy without such a log-weight.
    """
    check_latlon(latlon, "latlon")
    if len(latlon) != len(embeddings):
        raise ValueError(f"latlon: wanted one row per embedding, {len(embeddings)}, got {len(latlon)}")
    if not 1 <= k <= candidates:
        raise ValueError(f"k: wanted between 1 and candidates ({candidates}), got {k}")
    if not policy.reads_dissimilarity or policy.kind == "penalty":
        raise ValueError(f"policy: wanted one whose log-weight reads γ(h), got {policy.kind!r}")
    rows, cosines = most_similar(embeddings, candidates, references)
    hard, false = (np.full((len(rows), k), -1, dtype=np.int32) for _ in range(2))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        found = rows[some]
        own = np.repeat(latlon[some], found.shape[1], axis=0)
        h_km = torch.from_numpy(great_circle_km(own, latlon[found.reshape(-1)]).reshape(found.shape))
        d = 1 - torch.from_numpy(cosines[some]).double()
        weight = policy.torch_terms(
            h_km, d, variogram(h_km), variogram.correlation(h_km), variogram.sill
        ).log_weight
        assert weight is not None
        for table, strength in ((hard, weight.numpy()), (false, -weight.numpy())):
            best = np.argsort(-strength, axis=1, kind="stable")[:, :k]
            ranked = np.take_along_axis(found, best, axis=1)
            ranked[np.take_along_axis(strength, best, axis=1) <= 0] = -1
            table[some, : ranked.shape[1]] = ranked
    return SurpriseNeighbours(hard, false)
