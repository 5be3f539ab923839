"""Answering with the place that has the most probability around it, instead of the most probable place.

A gallery's softmax gives each place k a probability p_k. Photos taken near one another look alike, so that
what speaks for a place speaks for its neighbours too, by how much the semivariogram's correlation ρ says: the
support of place j is Σ_k p_k·ρ(h_jk). Many places that are each somewhat probable then outweigh a lone one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from geoclip.coordinates import unit_vectors
from semivario_kernels import EARTH_RADIUS_KM, VariogramModel

# of the most probable places: 64 gave the accuracy of 128 on the field and the synthetic world
CANDIDATES = 64
_PAIRS_AT_ONCE = 2**20  # 8 MB in float64


def order_by_support(
    latlon: NDArray[np.float64],
    similarity: NDArray[np.float32],
    logit_scale: float,
    variogram: VariogramModel,
) -> NDArray[np.int64]:
    """Sort each photo's candidates, best supported first; ties stay in the order that came.

    Args:
        latlon: (n, K, 2) latitude and longitude in degrees of each photo's most probable places.
        similarity: (n, K) cosines of the features.
        logit_scale: that turns cosines into logits; the probabilities are a softmax over the K places.
        variogram: its correlation weighs the other candidates.

    Returns:
        (n, K) positions among the candidates.
    """
    directions = torch.from_numpy(unit_vectors(latlon))
    probability = (logit_scale * torch.from_numpy(similarity).double()).softmax(dim=1)
    n, candidates = similarity.shape
    order = np.empty((n, candidates), dtype=np.int64)
    for start in range(0, n, photos_at_once := max(1, _PAIRS_AT_ONCE // candidates**2)):
        some = slice(start, start + photos_at_once)
        # from differences: a dot product would put a place 0.1 m from itself, where ρ is below 1
        chord = torch.cdist(
            directions[some], directions[some], compute_mode="donot_use_mm_for_euclid_dist"
        ).clamp_(max=2)
        correlation = variogram.correlation(2 * EARTH_RADIUS_KM * (chord / 2).asin())
        support = (correlation @ probability[some, :, None]).squeeze(2)
        order[some] = support.argsort(dim=1, descending=True, stable=True).numpy()
    return order
