"""Predictions as text: CSV, JSON and GeoJSON, piece by piece as the photos come."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from geoclip.prediction import SHARES, Prediction

RADII = tuple(f"radius_{100 * share:.0f}_km" for share in SHARES)
FAINTEST = 5e-4  # map cells with less probability are left out


def csv_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """One line per photo and place: photo, rank, latitude, longitude, probability, and the photo's radii."""
    head = _row(["photo", "rank", "latitude", "longitude", "probability", *RADII])
    for prediction in predictions:
        if head:  # not before the first photo is placed, which may fail
            yield head
            head = ""
        radii = [f"{km:.3f}" for km in prediction.radius_km]
        for rank, (latitude, longitude) in enumerate(prediction.latlon):
            place = [f"{latitude:.6f}", f"{longitude:.6f}", f"{prediction.probability[rank]:.6f}"]
            yield _row([prediction.photo, str(rank + 1), *place, *radii])
    if head:
        yield head


def json_text(predictions: Iterable[Prediction]) -> Iterator[str]:
    """A list with an object per photo, see `as_json`."""
    separator = "[\n"
    for prediction in predictions:
        yield separator + json.dumps(as_json(prediction))
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def geojson_text(predictions: Iterable[Prediction]) -> Iterator[str]:
    """A FeatureCollection (RFC 7946): a point per place and, where there is a density, a polygon per cell."""
    yield '{"type": "FeatureCollection", "features": ['
    separator = "\n"
    for prediction in predictions:
        for feature in _features(prediction):
            yield separator + json.dumps(feature)
            separator = ",\n"
    yield "\n]}\n"


FORMATS: dict[str, Callable[[Iterable[Prediction]], Iterator[str]]] = {
    "csv": csv_lines,
    "json": json_text,
    "geojson": geojson_text,
}


def as_json(prediction: Prediction) -> dict[str, Any]:
    """{"photo", "places": [{"latitude", "longitude", "probability"}], "radius_50_km", "radius_90_km"}.

    Where there are cells also "density": {"degrees": their side, "cells": [[latitude, longitude of the
    middle, probability]]}, without the faintest.
    """
    entry: dict[str, Any] = {
        "photo": prediction.photo,
        "places": [
            {"latitude": latitude, "longitude": longitude, "probability": float(probability)}
            for (latitude, longitude), probability in zip(
                prediction.latlon.round(6).tolist(), prediction.probability, strict=True
            )
        ],
        **dict(zip(RADII, prediction.radius_km.round(3).tolist(), strict=True)),
    }
    if prediction.cells is not None:
        centers = prediction.cells.centers.round(6)
        cells = [[*centers[cell].tolist(), probability] for cell, probability in _cells(prediction)]
        entry["density"] = {"degrees": prediction.cells.degrees, "cells": cells}
    return entry


def _cells(prediction: Prediction) -> Iterator[tuple[int, float]]:
    """Number and probability of the cells that are not faint."""
    if prediction.density is not None:
        for cell in (prediction.density >= FAINTEST).nonzero()[0]:
            yield int(cell), float(prediction.density[cell])


def _features(prediction: Prediction) -> Iterator[dict[str, Any]]:
    of_photo = {"photo": prediction.photo}
    radii = dict(zip(RADII, prediction.radius_km.round(3).tolist(), strict=True))
    for rank, (latitude, longitude) in enumerate(prediction.latlon.round(6).tolist()):
        about = {**of_photo, "rank": rank + 1, "probability": float(prediction.probability[rank])}
        if rank == 0:
            about |= radii
        yield {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [longitude, latitude]},
            "properties": about,
        }
    for cell, probability in _cells(prediction):
        assert prediction.cells is not None
        west, south, east, north = prediction.cells.edges[cell].round(6).tolist()
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {**of_photo, "probability": probability},
        }


def _row(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
