"""Positions from files, and the labels that stand beside them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semivario_kernels.embedding_files import map_npy, open_parquet, read_npz, shard_files

LATITUDE, LONGITUDE = ("latitude", "lat"), ("longitude", "lon", "lng", "long")  # in any case


@dataclass(frozen=True)
class PlaceTable:
    """Positions, and a label of each where one was asked for.

    Attributes:
        latlon: (N, 2) float64 latitude and longitude in degrees.
        groups: (N,) strings, or None.
    """

    latlon: npt.NDArray[np.float64]
    groups: npt.NDArray[np.str_] | None = None


def read_places(path: Path, *, groups: str | None = None) -> PlaceTable:
    """Read positions.

    Args:
        path: .npy or .npz of an (N, 2) array ("latlon", or the only one); .csv or .parquet with the columns
            latitude (or lat) and longitude (or lon, lng, long), in any case; or a folder of shards with a
            .parquet or .csv beside every .npy.
        groups: a column of the .csv or .parquet to read as labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged file, no such column, or a value that is no number; the message
            names the file.
    """
    if path.is_dir():
        suffix = ".parquet" if any(path.glob("*.parquet")) else ".csv"
        tables = [_read_table(file, groups) for file in shard_files(path, suffix)]
        return PlaceTable(
            np.concatenate([table.latlon for table in tables]),
            None if groups is None else np.concatenate([table.groups for table in tables]),
        )
    if path.suffix in (".csv", ".parquet"):
        return _read_table(path, groups)
    if path.suffix not in (".npy", ".npz"):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        raise ValueError(f"{path}: wanted .npy, .npz, .csv, .parquet or a folder of shards")
    if groups is not None:
        raise ValueError(f"{path}: holds no column {groups}; wanted a .csv or .parquet")
    array = map_npy(path) if path.suffix == ".npy" else read_npz(path, None, "latlon")
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: wanted (N, 2) latitudes and longitudes, got {array.dtype} of shape {array.shape}"
        )
    return PlaceTable(array.astype(np.float64))


def _read_table(path: Path, groups: str | None) -> PlaceTable:
    read = _csv_columns if path.suffix == ".csv" else _parquet_columns
    latitude, longitude, *labels = read(path, groups)
    try:
        latlon = np.column_stack([np.asarray(part, dtype=np.float64) for part in (latitude, longitude)])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: wanted numbers as latitude and longitude: {error}") from error
    return PlaceTable(latlon, np.array([str(label) for label in labels[0]]) if labels else None)


def _csv_columns(path: Path, groups: str | None) -> list[Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            chosen = _choose(path, next(rows, []), groups)
            columns: list[list[str]] = [[] for _ in chosen]
            for row in rows:
                if row:
                    for column, k in zip(columns, chosen, strict=True):
                        column.append(row[k])
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IndexError:
        raise ValueError(f"{path}: line {rows.line_num} has fewer columns than the header") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file: {error}") from error
    return columns


def _parquet_columns(path: Path, groups: str | None) -> list[Any]:
    file = open_parquet(path)
    names = file.schema_arrow.names
    chosen = [names[k] for k in _choose(path, names, groups)]
    table = file.read(list(dict.fromkeys(chosen)))
    for name in chosen[:2]:
        if table[name].null_count:
            raise ValueError(f"{path}: column {name} holds missing values")
    return [
        *(table[name].to_numpy() for name in chosen[:2]),
        *(table[name].to_pylist() for name in chosen[2:]),
    ]


def _choose(path: Path, names: list[str], groups: str | None) -> list[int]:
    """Places in `names` of latitude, longitude and the labels."""
    lower = [name.strip().lower() for name in names]
    chosen = []
    for wanted in (LATITUDE, LONGITUDE):
        found = [lower.index(name) for name in wanted if name in lower]
        if not found:
            raise ValueError(
                f"{path}: wanted a column named {' or '.join(wanted)}, got {', '.join(names) or 'nothing'}"
            )
        chosen.append(found[0])
    if groups is not None:
        if groups not in names:
            raise ValueError(f"{path}: no column {groups}; it holds {', '.join(names)}")
        chosen.append(names.index(groups))
    return chosen
