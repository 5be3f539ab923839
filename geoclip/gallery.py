"""A gallery: places with the features that a model gives them, encoded once and searched in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from geoclip.coordinates import check_latlon, unit_vectors
from geoclip.gallery_cache import cached_features
from geoclip.model import GeoCLIP
from geoclip.progress import progress_bar
from geoclip.support import CANDIDATES, order_by_support
from semivario_kernels import EARTH_RADIUS_KM, VariogramModel, topk_gallery

LatLon = NDArray[np.float64]

_PLACES_AT_ONCE = 4096  # 16 MB per activation of width 1,024
_PAIRS_AT_ONCE = 2**21  # 16 MB in float64; at least one photo against the whole gallery
_ROUNDING = 1e-6  # of a cosine in float32
_RADIUS_BINS = 4096  # per level: two levels resolve 0.8 m of chord


class MapCells:
    """The cells of a latitude-longitude grid that hold places of a gallery.

    The grid starts at the South Pole and the date line; where the side does not divide the map, its last row
    and column are cut off at the map's edge.

    Args:
        latlon: (M, 2) latitude and longitude in degrees.
        degrees: side of a cell.

    Attributes:
        degrees: side of a cell.
        edges: (C, 4) west, south, east and north of the cells, in degrees.
        centers: (C, 2) latitude and longitude of their middles.
        cell: (M,) int64 cell of each place.

    Raises:
        ValueError: `degrees` is not between 0.01 and 90.
    """

    def __init__(self, latlon: LatLon, degrees: float) -> None:
        if not 0.01 <= degrees <= 90:
            raise ValueError(f"degrees: wanted a cell's side between 0.01 and 90 degrees, got {degrees}")
        self.degrees = degrees
        longitude = (latlon[:, 1] + 180) % 360
        size = np.array([180.0, 360.0])
        # 180/0.1 need not come out whole
        last = np.ceil(size / degrees - 1e-9) - 1
        # the North Pole itself is in the last row
        corner = np.minimum(np.floor(np.column_stack([latlon[:, 0] + 90, longitude]) / degrees), last)
        found, cell = np.unique(corner, axis=0, return_inverse=True)
        low, high = found * degrees - size / 2, np.minimum((found + 1) * degrees, size) - size / 2
        self.edges: LatLon = np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1)
        self.centers: LatLon = (low + high) / 2
        self.cell = torch.from_numpy(cell.reshape(-1))


@dataclass(frozen=True)
class Located:
    """Where n photos may have been taken.

    Attributes:
        latlon: (n, k, 2) latitude and longitude in degrees, best first.
        probability: (n, k) of these places, as softmax over the whole gallery.
        radius_km: (n, S) great-circle radius around the first place that holds each share asked for.
        density: (n, C) probability of each map cell; None where no cells were asked for.
    """

    latlon: LatLon
    probability: NDArray[np.float32]
    radius_km: LatLon
    density: NDArray[np.float32] | None


class Gallery:
    """Places to choose from.

    Args:
        model: gives the places, and the photos to be placed, their features; it works on the model's device.
        latlon: (M, 2) latitude and longitude in degrees.
        logit_scale: that turns cosines into logits, see `geoclip.calibration`; None takes the model's.
        cache: folder that keeps the places' features from one run to the next, see `gallery_cache`; None
            keeps them in memory alone.
        progress: whether to show bars.

    Raises:
        ValueError: `latlon` is not (M, 2) finite degrees with M ≥ 1, `logit_scale` is not above 0 or not
            finite, or a feature is not finite.
    """

    def __init__(
        self,
        model: GeoCLIP,
        latlon: LatLon,
        *,
        logit_scale: float | None = None,
        cache: Path | None = None,
        progress: bool = False,
    ) -> None:
        latlon = check_latlon(latlon, "gallery")
        if not len(latlon):
            raise ValueError("gallery: wanted at least one place, got none")
        if logit_scale is None:
            logit_scale = float(model.logit_scale.detach().exp())
        self.logit_scale = _checked_scale(logit_scale)
        self.model, self.latlon, self.progress = model, latlon, progress
        self.device = model.logit_scale.device
        places = torch.from_numpy(latlon).float()
        width = int(model.location_encoder.output_dim)  # type: ignore[arg-type]
        if cache is None:
            # filled in place: joining chunks would hold everything twice
            self.features = torch.empty(len(places), width, device=self.device)
            start = 0
            for chunk in self._encode(places):
                self.features[start : start + len(chunk)] = chunk
                start += len(chunk)
        else:
            features = cached_features(
                model.location_encoder, places, width, cache, lambda: self._encode(places)
            )
            self.features = features.to(self.device)

    def place(
        self, embeddings: torch.Tensor, k: int = 1, *, variogram: VariogramModel | None = None
    ) -> tuple[LatLon, NDArray[np.float32]]:
        """Find the k places that fit each photo best.

        Args:
            embeddings: (n, E) frozen embeddings of the photos.
            k: places per photo, at most M.
            variogram: puts the most alike places in the order of `geoclip.support`; None leaves them in that
                of their cosines.

        Returns:
            The places, (n, k, 2) latitude and longitude in degrees, best first, and their (n, k) cosines.

        Raises:
            ValueError: wrong shapes, embeddings that are not finite, or k outside 1 … M.
        """
        values, indices = self._best(self.photo_features(embeddings), k, variogram, self.logit_scale)
        return self.latlon[indices.cpu().numpy()], values.cpu().numpy()

    @torch.no_grad()
    def rank(self, embeddings: torch.Tensor, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where a given place comes among all, for each photo: 1 where no other place fits as well.

        Places at the coordinates of the given one do not count against it; those whose cosine differs by
        float32's rounding alone do.

        Args:
            embeddings: (n, E) frozen embeddings of the photos.
            place: (n,) rows of the gallery.

        Returns:
            (n,) int64, from 1 to M.

        Raises:
            ValueError: as in `place`.
        """
        x = self.photo_features(embeddings)
        rows = torch.from_numpy(place)
        # two float32 side by side are one number that tells coordinates apart
        coordinates = torch.from_numpy(self.latlon.astype(np.float32).view(np.int64)[:, 0]).to(self.device)
        wanted = self.features[rows.to(self.features.device)]
        score = (x * wanted).sum(dim=1, keepdim=True) - _ROUNDING
        ranks = torch.ones(len(x), dtype=torch.int64, device=self.device)
        own = coordinates[rows.to(self.device), None]
        for start in range(0, len(self.latlon), _PLACES_AT_ONCE):
            some = slice(start, start + _PLACES_AT_ONCE)
            as_good = x @ self.features[some].T >= score
            ranks += (as_good & (coordinates[some] != own)).sum(dim=1)
        return ranks.cpu().numpy()

    @torch.no_grad()
    def locate(
        self,
        embeddings: torch.Tensor,
        k: int = 1,
        *,
        shares: Sequence[float] = (0.5, 0.9),
        cells: MapCells | None = None,
        variogram: VariogramModel | None = None,
        logit_scale: float | None = None,
    ) -> Located:
        """Find the k best places of each photo, and how the probability spreads around the first.

        Args:
            embeddings: (n, E) frozen embeddings of the photos.
            k: places per photo, at most M.
            shares: of the probability, each between 0 and 1, for the radii.
            cells: of this gallery's places, for the density.
            variogram: as in `place`; None puts the most probable place first.
            logit_scale: of the probabilities; None takes the gallery's.

        Returns:
            Places, their probabilities, radii in km and, with `cells`, the density.

        Raises:
            ValueError: as in `place`, a share outside (0, 1), or a `logit_scale` as in `Gallery`.
        """
        if not all(0 < share < 1 for share in shares):
            raise ValueError(f"shares: wanted fractions between 0 and 1, got {list(shares)}")
        x = self.photo_features(embeddings)
        scale = self.logit_scale if logit_scale is None else _checked_scale(logit_scale)
        similarity, index = self._best(x, k, variogram, scale)
        probability = scale * similarity
        radius_km = np.empty((len(x), len(shares)))
        density = None if cells is None else np.empty((len(x), len(cells.centers)), dtype=np.float32)
        for start in range(0, len(x), photos_at_once := max(1, _PAIRS_AT_ONCE // len(self.latlon))):
            some = slice(start, start + photos_at_once)
            logits = (scale * x[some]) @ self.features.T
            probability[some] -= logits.logsumexp(dim=1, keepdim=True)
            share = logits.softmax(dim=1)
            # float64: in float32 the chord from a dot product is 3 km wrong at 1 m
            chord = (
                (2 - 2 * self._directions[index[some, 0]] @ self._directions.T).clamp_(min=0).sqrt_().float()
            )
            radius_km[some] = _radius_km(chord, share, shares).cpu().numpy()
            if cells is not None and density is not None:
                mass = torch.zeros(len(share), len(cells.centers), device=self.device)
                density[some] = mass.index_add_(1, cells.cell.to(self.device), share).cpu().numpy()
        return Located(self.latlon[index.cpu().numpy()], probability.exp().cpu().numpy(), radius_km, density)

    def _best(
        self, x: torch.Tensor, k: int, variogram: VariogramModel | None, logit_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and rows of the k places that fit the photos' features (n, D) best, (n, k) each."""
        if variogram is None:
            return topk_gallery(x, self.features, k)
        sorted_anew = min(CANDIDATES, len(self.latlon))
        values, indices = topk_gallery(x, self.features, max(k, sorted_anew))
        order = np.tile(np.arange(values.shape[1]), (len(x), 1))
        order[:, :sorted_anew] = order_by_support(
            self.latlon[indices[:, :sorted_anew].cpu().numpy()],
            values[:, :sorted_anew].cpu().numpy(),
            logit_scale,
            variogram,
        )
        first = torch.from_numpy(order[:, :k]).to(values.device)
        return values.gather(1, first), indices.gather(1, first)

    @torch.no_grad()
    def photo_features(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Unit features (n, D) of photos' frozen embeddings (n, E), on the model's device.

        Of (n, V, E), V pictures of each photo, it is the direction of the mean of their unit features, which
        ranks places by the mean of the pictures' cosines, as GeoCLIP does with ten crops.

        Raises:
            ValueError: a wrong shape, or a feature that is not finite.
        """
        if embeddings.ndim == 3:
            pictures = self.photo_features(embeddings.flatten(0, 1))
            return normalize(pictures.reshape(*embeddings.shape[:2], -1).mean(dim=1), dim=1)
        chunks = [
            normalize(self.model.image_encoder(chunk.to(self.device)), dim=1)
            for chunk in torch.split(embeddings, _PLACES_AT_ONCE)
        ]
        features = torch.cat(chunks)
        finite = features.isfinite().all(dim=1)
        if not finite.all():
            row = int(finite.int().argmin())
            whose = "the model's features" if embeddings[row].isfinite().all() else "embeddings"
            raise ValueError(f"{whose} of photo {row + 1} are NaN or infinite")
        return features

    @torch.no_grad()
    def _encode(self, places: torch.Tensor) -> Iterator[torch.Tensor]:
        """Unit features of `places`, never holding more than a chunk's activations."""
        with progress_bar("encoding places", len(places), "places", enabled=self.progress) as advance:
            for chunk in torch.split(places, _PLACES_AT_ONCE):
                features = normalize(self.model.location_encoder(chunk.to(self.device)), dim=1)
                if not features.isfinite().all():
                    raise ValueError("model: its features of the gallery's places are NaN or infinite")
                yield features
                advance(len(chunk))

    @cached_property
    def _directions(self) -> torch.Tensor:
        """(M, 3) float64 unit vectors of the places."""
        return torch.from_numpy(unit_vectors(self.latlon)).to(self.device)


def _checked_scale(logit_scale: float) -> float:
    if not 0 < logit_scale < math.inf:
        raise ValueError(f"logit_scale: wanted a finite number above 0, got {logit_scale}")
    return logit_scale


def _radius_km(chord: torch.Tensor, share: torch.Tensor, wanted: Sequence[float]) -> torch.Tensor:
    """(n, S) radii that hold the wanted shares, from (n, M) chords on the unit sphere and probabilities.

    A histogram over the chord, then a second one of the bin that the share falls into: a sort of the whole
    gallery takes twenty times as long. A radius is some metres off at most, near the antipode 0.1 km.
    """
    coarse_width = 2 * (1 + 1e-6) / _RADIUS_BINS
    fine_width = coarse_width / _RADIUS_BINS
    coarse = (chord / coarse_width).long()
    mass = torch.zeros(len(chord), _RADIUS_BINS, device=chord.device).scatter_add_(1, coarse, share)
    total = mass.double().cumsum(dim=1)
    radii = []
    for fraction in wanted:
        goal = fraction * total[:, -1:]
        bin_ = (total < goal).sum(dim=1, keepdim=True)
        before = (total.gather(1, bin_) - mass.gather(1, bin_)).clamp_(min=0)
        here = coarse == bin_
        fine = ((chord - bin_ * coarse_width) / fine_width).long().clamp_(0, _RADIUS_BINS - 1)
        inside = torch.zeros_like(mass).scatter_add_(1, fine, torch.where(here, share, 0.0))
        steps = (before + inside.double().cumsum(dim=1) < goal).sum(dim=1, keepdim=True)
        steps = steps.clamp_(max=_RADIUS_BINS - 1) + 1
        radius = bin_.double() * coarse_width + steps * fine_width
        radii.append(2 * EARTH_RADIUS_KM * (radius / 2).clamp_(max=1).asin())
    return torch.cat(radii, dim=1)
