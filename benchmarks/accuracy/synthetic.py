"""World (b): towns on a sphere whose photos follow a known semivariogram, with planted look-alikes.

What a place looks like is a Gaussian random field on the sphere for each of 64 dimensions. Its covariance is
½·exp(−c/20 km) + ½·exp(−c/600 km) in chord distance c, made from random Fourier features that are drawn from
the exact spectrum. Three things are planted:

- Distant look-alikes: half of the towns have a twin elsewhere that looks the same but for a small part of
  its own. Photos from the same spot of twins are hard negatives, and the small part tells them apart.
- Near places look alike, the field is smooth: these are the false negatives.
- One photo in five shows nothing of its place, an interior say: it is like no other, and near pairs with it
  are no false negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.accuracy.world import World
from geoclip.coordinates import unit_vectors
from semivario_kernels import (
    EARTH_RADIUS_KM,
    EmpiricalVariogram,
    VariogramModel,
    binned_semivariance,
    fit_variogram,
    log_edges_km,
)

LEN_SCALES_KM = (20.0, 600.0)
DIM = 64
FREQUENCIES = 2048  # of each structure: the field's covariance is right to about 1/√2048
TWIN_SHARE = 0.9  # cosine of what twins share, of the noiseless field
NOISE = 0.6  # length of each photo's own part, relative to the field's
VARIOGRAM_PLACES = 6000
ATYPICAL = 0.2  # share of the photos that show nothing of their place


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos of which everything is known.

    Attributes:
        latlon: (n, 2) degrees.
        embeddings: (n, DIM) float32 unit vectors.
        town: (n,) number of the town.
        twin: (n,) number of the town that looks the same; −1: there is none.
        look: (n, 2) degrees of the place whose look the photo shares: the same spot in the twin for one half
            of the twins, its own place for all others.
        typical: (n,) whether the photo shows its place.
    """

    latlon: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    town: NDArray[np.int64]
    twin: NDArray[np.int64]
    look: NDArray[np.float64]
    typical: NDArray[np.bool_]


def field_model() -> VariogramModel:
    """The semivariogram of the noiseless field, before look-alikes and atypical photos."""
    return VariogramModel(
        ("exponential", "exponential"), 0.0, (0.5, 0.5), LEN_SCALES_KM, (1.0, 1.0), metric="chord"
    )


def random_field(
    latlon: NDArray[np.float64], rng: np.random.Generator, dim: int = DIM
) -> NDArray[np.float64]:
    """Gaussian random fields of variance 1 at the places, (n, dim), with `field_model`'s semivariogram.

    The spectrum of exp(−c/ℓ) in three dimensions is a Cauchy distribution (Student's t with one degree of
    freedom) of scale 1/ℓ.
    """
    vectors = unit_vectors(latlon)
    field = np.zeros((len(latlon), dim))
    for scale_km in LEN_SCALES_KM:
        normal = rng.standard_normal((FREQUENCIES, 3))
        cauchy = normal / np.abs(rng.standard_normal((FREQUENCIES, 1)))
        weights = rng.standard_normal((2 * FREQUENCIES, dim)) / np.sqrt(FREQUENCIES)
        for start in range(0, len(latlon), 1024):
            phase = vectors[start : start + 1024] @ cauchy.T * (EARTH_RADIUS_KM / scale_km)
            features = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
            field[start : start + 1024] += features @ weights * np.sqrt(1 / len(LEN_SCALES_KM))
    return field


def make_photos(towns: int, per_town: int, seed: int) -> Photos:
    """Towns at random places of the sphere, each with photos 0.2 to 60 km from its middle.

    Args:
        towns: how many; the second quarter of them are twins of the first.
        per_town: photos of each.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((towns, 3))
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    pairs = towns // 4
    twin = np.full(towns, -1)
    twin[: 2 * pairs] = (np.arange(2 * pairs) + pairs) % (2 * pairs)
    town = np.repeat(np.arange(towns), per_town)
    looks_like = np.where((pairs <= town) & (town < 2 * pairs), twin[town], town)

    arc = 0.2 * 300 ** rng.random(len(town)) / EARTH_RADIUS_KM  # 0.2 to 60 km, evenly in their logarithm
    turn = 2 * np.pi * rng.random(len(town))
    latlon, look = (_around(middle[which], arc, turn) for which in (town, looks_like))

    field, shared = random_field(latlon, rng), random_field(look, rng)
    has_twin = (twin[town] >= 0)[:, None]
    field = np.where(has_twin, np.sqrt(TWIN_SHARE) * shared + np.sqrt(1 - TWIN_SHARE) * field, field)

    typical = rng.random(len(town)) >= ATYPICAL
    field = np.where(typical[:, None], field, rng.standard_normal(field.shape))
    photos = field + NOISE * rng.standard_normal(field.shape)
    photos /= np.linalg.norm(photos, axis=1, keepdims=True)
    return Photos(latlon, photos.astype(np.float32), town, twin[town], look, typical)


def measured(photos: Photos, seed: int) -> EmpiricalVariogram:
    """The semivariogram as a user would measure it, of a random sample of all photos."""
    rows = np.random.default_rng(seed).permutation(len(photos.latlon))[:VARIOGRAM_PLACES]
    return binned_semivariance(
        photos.embeddings[rows], photos.latlon[rows], edges_km=log_edges_km(1.0, 20_015.0, 30)
    )


def world_of(photos: Photos, kind: str = "stable", *, seed: int = 0) -> World:
    """Photos to train on, every sixth of them held out; the semivariogram is fitted on the others."""
    order = np.random.default_rng(seed).permutation(len(photos.latlon))
    held_out, train = order[: len(order) // 6], np.sort(order[len(order) // 6 :])
    learnt = Photos(
        photos.latlon[train],
        photos.embeddings[train],
        photos.town[train],
        photos.twin[train],
        photos.look[train],
        photos.typical[train],
    )
    return World(
        train_latlon=learnt.latlon,
        train=torch.from_numpy(learnt.embeddings).half(),
        gallery=photos.latlon,
        held_out_latlon=photos.latlon[held_out],
        held_out=torch.from_numpy(photos.embeddings[held_out]),
        fit=fit_variogram(measured(learnt, seed), kind),
        validation=len(held_out) // 3,
    )


def _around(
    middle: NDArray[np.float64], arc: NDArray[np.float64], turn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, 2) degrees of the places at this arc and in this direction (radians) from unit vectors (n, 3)."""
    east = np.cross(middle, [0.0, 0.0, 1.0])
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    across = np.cos(turn)[:, None] * east + np.sin(turn)[:, None] * np.cross(east, middle)
    return _degrees(np.cos(arc)[:, None] * middle + np.sin(arc)[:, None] * across)


def _degrees(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = vectors.T
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=1))
