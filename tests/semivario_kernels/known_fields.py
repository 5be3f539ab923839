"""Random fields on the sphere whose semivariogram is known."""

import numpy as np
import torch

from semivario_kernels import EARTH_RADIUS_KM, VariogramModel


class KnownField:
    """Independent Gaussian fields at fixed places, by the Cholesky factor of a model's covariance.

    The model's metric is "chord", in which every kind is a valid covariance. Its sill is 1, so that the
    vectors' mean dissimilarity 1 − cos tends to γ as the dimensions grow.
    """

    def __init__(self, model: VariogramModel, latlon: torch.Tensor) -> None:
        assert model.metric == "chord"
        assert abs(model.sill - 1) < 1e-12
        latitude, longitude = torch.deg2rad(latlon.double()).unbind(1)
        axes = (latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin())
        xyz = torch.stack(axes, 1)
        half_chord = torch.cdist(xyz, xyz, compute_mode="donot_use_mm_for_euclid_dist") / 2
        h_km = 2 * EARTH_RADIUS_KM * torch.asin(half_chord.clamp(max=1))
        covariance = model.total_psill * model.correlation(h_km)
        covariance += model.nugget * torch.eye(len(latlon), dtype=torch.float64)
        self.factor = torch.linalg.cholesky(covariance)

    def draw(self, dims: int, seed: int) -> torch.Tensor:
        """(n, dims) float64: one field per dimension."""
        generator = torch.Generator().manual_seed(seed)
        return self.factor @ torch.randn(len(self.factor), dims, generator=generator, dtype=torch.float64)


def towns(count: int, places: int, radius_km: float, seed: int) -> torch.Tensor:
    """`places` around each of `count` towns anywhere on Earth, (count·places, 2) degrees, at all scales."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(count, 1, 3))
    centre /= np.linalg.norm(centre, axis=2, keepdims=True)
    offset = rng.normal(size=(count, places, 3))
    offset /= np.linalg.norm(offset, axis=2, keepdims=True)
    offset *= radius_km / EARTH_RADIUS_KM * rng.uniform(0, 1, size=(count, places, 1)) ** 2
    xyz = (centre + offset).reshape(-1, 3)
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    latitude, longitude = np.arcsin(xyz[:, 2]), np.arctan2(xyz[:, 1], xyz[:, 0])
    return torch.from_numpy(np.degrees(np.column_stack([latitude, longitude])))
