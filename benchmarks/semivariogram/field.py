"""The places and embeddings of one measurement, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.semivariogram.cases import Places
from semivario_kernels import EARTH_RADIUS_KM
from semivario_kernels.geometry import unit_vectors

LEN_SCALE_KM = 500.0
NOISE = 0.5
ROWS = 256  # made at a time, so that making the field needs no memory worth mentioning


@dataclass(frozen=True)
class Field:
    """Embeddings (N, E) float32, positions (N, 2) float64 in degrees, in no order."""

    embeddings: torch.Tensor
    latlon: torch.Tensor

    def unit_vectors(self) -> np.ndarray:
        """The embeddings at length one, (N, E) float64: what peers are given."""
        return torch.nn.functional.normalize(self.embeddings.double(), dim=1).numpy()


def make_field(
    n: int, e: int, places: Places = "sphere", *, seed: int = 0, device: torch.device | str = "cpu"
) -> Field:
    """Random Fourier features of the place, alike within about 500 km, and noise.

    Raises:
        ValueError: more places than the gallery has.
        UpstreamUnavailable: the gallery is not in the cache and cannot be fetched.
    """
    generator = torch.Generator(device).manual_seed(seed)
    there = {"generator": generator, "device": device}
    if places == "gallery":
        from geoclip.upstream import read_gallery

        gallery = read_gallery()
        if n > len(gallery):
            raise ValueError(f"n: wanted at most the gallery's {len(gallery)} places, got {n}")
        latlon = gallery.to(device)[torch.randperm(len(gallery), **there)[:n]]
    else:
        z, turn = torch.rand(2, n, dtype=torch.float64, **there)
        latlon = torch.stack([torch.rad2deg(torch.asin(2 * z - 1)), 360 * turn - 180], dim=1)
    frequency = torch.randn(3, e, **there) * (EARTH_RADIUS_KM / LEN_SCALE_KM)
    phase = 2 * torch.pi * torch.rand(e, **there)
    embeddings = torch.empty(n, e, device=device)
    for rows, some in zip(embeddings.split(ROWS), latlon.split(ROWS), strict=True):
        torch.addmm(phase, unit_vectors(some).float(), frequency, out=rows)
        rows.cos_().add_(torch.randn(len(some), e, **there), alpha=NOISE)
    return Field(embeddings, latlon)
