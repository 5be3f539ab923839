"""How well a model places the photos of an embedding store: distances, ranks, areas, countries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geoclip.coordinates import unit_vectors
from geoclip.embedding_store import EmbeddingStore
from geoclip.gallery import Gallery
from geoclip.metrics import Metrics, geolocation_metrics, great_circle_km, share_metrics
from geoclip.photos import AREAS
from geoclip.progress import progress_bar
from semivario_kernels import VariogramModel

LatLon = NDArray[np.float64]
Areas = Mapping[str, pa.DictionaryArray]

RECALLS = (1, 5, 10)  # and the first hundredth of the gallery
_PHOTOS_AT_ONCE = 4096  # 64 MB of similarities to a chunk of places
_COUNTRY_BOOTSTRAP = 200


@dataclass(frozen=True)
class Placed:
    """What became of the n photos of a store.

    Attributes:
        true_latlon: (n, 2) degrees.
        latlon: (n, 2) degrees, the place that fits best.
        rank: (n,) where the place nearest to the truth comes among all places of the gallery, from 1.
        places: number M of the gallery's places.
    """

    true_latlon: LatLon
    latlon: LatLon
    rank: NDArray[np.int64]
    places: int


def place_store(
    gallery: Gallery, test: EmbeddingStore, *, variogram: VariogramModel | None = None, progress: bool = False
) -> Placed:
    """Place every photo of a store, some at a time; one stored as ten crops by all of them.

    Args:
        gallery: the places to choose from.
        test: the photos' embeddings and true places.
        variogram: as in `Gallery.place`.
        progress: whether to show a bar.

    Raises:
        ValueError: an embedding is not finite, or of another length than the model takes.
    """
    truth = test.latlon
    nearest = nearest_places(gallery.latlon, truth)
    latlon = np.empty_like(truth)
    rank = np.empty(len(test), dtype=np.int64)
    with progress_bar("placing photos", len(test), "photos", enabled=progress) as advance:
        for start in range(0, len(test), _PHOTOS_AT_ONCE):
            rows = np.arange(start, min(start + _PHOTOS_AT_ONCE, len(test)))
            embeddings = pictures_of(test, rows)
            latlon[rows] = gallery.place(embeddings, variogram=variogram)[0][:, 0]
            rank[rows] = gallery.rank(embeddings, nearest[rows])
            advance(len(rows))
    return Placed(truth, latlon, rank, len(gallery.latlon))


def pictures_of(store: EmbeddingStore, rows: NDArray[np.int64]) -> torch.Tensor:
    """Embeddings of some photos, (n, E); of those stored as ten crops (n, V, E), all crops."""
    if store.info.get("pictures") != "tencrop":
        return torch.from_numpy(store.read(rows))
    return torch.from_numpy(np.stack([store.read(rows, crop) for crop in range(1, store.views + 1)], axis=1))


def recall_metrics(placed: Placed) -> Metrics:
    """R@1, R@5, R@10 and R@1 %: how often the place nearest to the truth is among the first of the gallery.

    R@1 % is over the first M // 100 places, at least one (Sample4Geo's definition).

    Args:
        placed: what `place_store` returned.

    Returns:
        Shares, "recall_at_1", …, "recall_at_1_percent"; those of more places than there are, left out.
    """
    hits = {f"recall_at_{k}": placed.rank <= k for k in RECALLS if k <= placed.places}
    hits["recall_at_1_percent"] = placed.rank <= max(1, placed.places // 100)
    return share_metrics(hits)


def area_metrics(placed: Placed, areas: Areas, label_latlon: LatLon, labels: Areas) -> dict[str, Any]:
    """Administrative accuracies, as OpenStreetView-5M reports them for country, region, sub-region and city.

    An area is that of the labelled place nearest to the prediction: OSV5M's own evaluation looks a prediction
    up among GeoNames' cities the same way, by the nearest one. A photo counts at a level where its own area
    is known, and is right where that one and those above it, as far as both sides know them, agree.

    Args:
        placed: the n photos.
        areas: (n,) areas of the photos, as `EmbeddingStore.areas`.
        label_latlon: (m, 2) degrees of labelled places, none of them a test photo.
        labels: (m,) their areas.

    Returns:
        {"accuracy": `Metrics` by level, "photos": number that count by level, "label_distance_km": {"median",
        "p95"} from predictions to the labelled places}; levels that one side lacks are left out.
    """
    hits: dict[str, NDArray[np.bool_]] = {}
    photos: dict[str, int] = {}
    distance_km: LatLon | None = None
    levels = [level for level in AREAS if level in areas and level in labels]
    for depth, level in enumerate(levels):
        known_labels = _known(labels[level]).nonzero()[0]
        if not len(known_labels):
            continue
        nearest = known_labels[nearest_places(label_latlon[known_labels], placed.latlon)]
        if distance_km is None:
            distance_km = great_circle_km(label_latlon[nearest], placed.latlon)
        right = np.ones(len(nearest), dtype=bool)
        for above in levels[: depth + 1]:
            predicted = labels[above].take(pa.array(nearest))
            same = pc.equal(areas[above].cast(pa.string()), predicted.cast(pa.string()))
            right &= pc.fill_null(same, True).to_numpy(zero_copy_only=False)
        known = _known(areas[level])
        hits[level], photos[level] = right[known], int(known.sum())
    result: dict[str, Any] = {"accuracy": share_metrics(hits), "photos": photos}
    if distance_km is not None:
        median, p95 = np.quantile(distance_km, [0.5, 0.95])
        result["label_distance_km"] = {"median": float(median), "p95": float(p95)}
    return result


def country_table(placed: Placed, country: pa.DictionaryArray) -> list[dict[str, Any]]:
    """Metrics of the photos of each country, the one with the most photos first.

    Args:
        placed: the n photos.
        country: (n,) names, null where one is not known.

    Returns:
        {"country", "photos", "metrics": `geolocation_metrics`} each; intervals from 200 resamples.
    """
    code = pc.fill_null(country.indices, -1).to_numpy(zero_copy_only=False)
    rows = []
    for found in np.unique(code[code >= 0]):
        mine = code == found
        metrics = geolocation_metrics(
            placed.latlon[mine], placed.true_latlon[mine], bootstrap=_COUNTRY_BOOTSTRAP
        )
        name = country.dictionary[int(found)].as_py()
        rows.append({"country": name, "photos": int(mine.sum()), "metrics": metrics})
    return sorted(rows, key=lambda row: (-row["photos"], row["country"]))


def _known(column: pa.DictionaryArray) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = pc.is_valid(column).to_numpy(zero_copy_only=False)
    return known


def nearest_places(places: LatLon, latlon: LatLon) -> NDArray[np.int64]:
    """The row of the nearest of `places` for each of `latlon`; of several as near, any."""
    # the nearest along the chord is the nearest along the arc
    row: NDArray[np.int64] = cKDTree(unit_vectors(places)).query(unit_vectors(latlon))[1]
    return row
