"""What a contestant is trained and tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from semivario_kernels import VariogramFit


@dataclass(frozen=True, eq=False)
class World:
    """Photos to learn from and photos to be placed.

    Attributes:
        train_latlon: (N, 2) degrees.
        train: (N, E) float16 embeddings.
        gallery: (P, 2) degrees, all places that an answer may be, those of held-out photos included.
        held_out_latlon: (n, 2) degrees; the first `validation` rows serve the choice of strengths.
        held_out: (n, E) float32 embeddings.
        fit: the semivariogram, measured on training photos.
        validation: how many of the held-out photos no table of results reads.
    """

    train_latlon: NDArray[np.float64]
    train: torch.Tensor
    gallery: NDArray[np.float64]
    held_out_latlon: NDArray[np.float64]
    held_out: torch.Tensor
    fit: VariogramFit
    validation: int
