"""The places to choose from, as a user names them: the official ones, a table, an array or a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from geoclip.coordinates import check_latlon
from geoclip.embedding_store import EmbeddingStore
from geoclip.upstream import read_gallery

LatLon = NDArray[np.float64]


def read_places(source: str) -> LatLon:
    """Read the places to choose from.

    Args:
        source: "upstream" (the official 100,000), an embedding store, a .npy of (M, 2) latitude and longitude
            in degrees, or a .csv with the columns latitude (or LAT, lat) and longitude (or LON, lon, lng).

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds something else.
        UpstreamUnavailable: the official places are asked for and cannot be fetched.
    """
    if source == "upstream":
        places: LatLon = read_gallery().numpy()
        return places
    path = Path(source)
    latlon: LatLon
    if path.is_dir():
        return EmbeddingStore.open(path).latlon
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix == ".npy":
        try:
            latlon = np.load(path, allow_pickle=False).astype(np.float64)
        except ValueError as error:
            raise ValueError(f"{path} is no array of numbers: {error}") from error
    elif path.suffix == ".csv":
        latlon = _read_csv(path)
    else:
        raise ValueError(f"{path}: wanted 'upstream', an embedding store, a .npy or a .csv")
    latlon = check_latlon(latlon, str(path))
    if not len(latlon):
        raise ValueError(f"{path}: wanted at least one place, got none")
    return latlon


def _read_csv(path: Path) -> LatLon:
    try:
        table = pyarrow.csv.read_csv(path)
        names = {name.strip().lower(): name for name in table.column_names}
        columns = [
            next(names[alias] for alias in aliases if alias in names)
            for aliases in (("latitude", "lat"), ("longitude", "lon", "lng"))
        ]
        return np.stack([table[name].cast(pa.float64()).to_numpy() for name in columns], axis=1)
    except StopIteration:
        raise ValueError(
            f"{path}: wanted the columns latitude (or lat) and longitude (or lon, lng), "
            f"got {', '.join(table.column_names)}"
        ) from None
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no table of coordinates: {error}") from error
