"""The logit scale under which a gallery's probabilities suit photos whose places are known.

Training finds the scale that suits its batches; a gallery is larger, and its places are not drawn like a
batch's. One number, fitted by maximum likelihood on photos that were not trained on, mends that: temperature
scaling (Guo et al., 2017). It leaves the order of the most alike places as it is, and changes what is made of
their probabilities: the radii around an answer, and the answer by support.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from geoclip.evaluation import nearest_places
from geoclip.gallery import Gallery
from geoclip.metrics import great_circle_km
from semivario_kernels import NegativePolicy, semivariogram_info_nce

LARGEST_SCALE = 1e4  # a cosine of float32 has no more digits to tell places apart by
_RELATIVE_ERROR = 0.005


@torch.no_grad()
def calibrated_logit_scale(gallery: Gallery, embeddings: torch.Tensor, latlon: NDArray[np.float64]) -> float:
    """Fit the scale between 1 and `LARGEST_SCALE` that makes the photos' own places most probable.

    Args:
        gallery: the places, of which the nearest to a photo is taken for its own.
        embeddings: (n, E) frozen embeddings of photos that were not trained on, or (n, V, E) of V pictures
            of each; some hundred are enough.
        latlon: (n, 2) degrees, where they were taken.

    Raises:
        ValueError: as in `Gallery.place`.
    """
    x = gallery.photo_features(embeddings)
    own = torch.from_numpy(nearest_places(gallery.latlon, latlon)).to(x.device)
    plain = NegativePolicy.none()

    def surprise(log_scale: float) -> float:
        scale = math.exp(log_scale)
        loss = semivariogram_info_nce(
            x, gallery.features, None, None, scale, policy=plain, targets=own, normalize=False
        )
        return float(loss)

    found = minimize_scalar(
        surprise, bounds=(0.0, math.log(LARGEST_SCALE)), method="bounded", options={"xatol": _RELATIVE_ERROR}
    )
    return math.exp(found.x)


def coverage(
    gallery: Gallery,
    embeddings: torch.Tensor,
    latlon: NDArray[np.float64],
    logit_scale: float,
    shares: Sequence[float] = (0.5, 0.9),
) -> list[float]:
    """Fraction of the photos taken within the radius that holds each share of the probability, (S,).

    Args:
        gallery: the places; the radius is around the most probable one.
        embeddings: (n, E) or (n, V, E) frozen embeddings.
        latlon: (n, 2) degrees, where the photos were taken.
        logit_scale: of the probabilities.
        shares: of the probability; calibrated ones cover about as many photos.

    Raises:
        ValueError: as in `Gallery.locate`.
    """
    located = gallery.locate(embeddings, shares=shares, logit_scale=logit_scale)
    error_km = great_circle_km(located.latlon[:, 0], latlon)
    return [float((error_km <= radius).mean()) for radius in located.radius_km.T]
