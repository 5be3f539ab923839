"""Lists of geotagged photos, from a table or from a folder of JPEGs."""

from __future__ import annotations

import csv
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import ExifTags, Image

from geoclip.coordinates import check_latlon

# names that published data sets give these columns, in order of preference; case does not matter
COLUMNS = {
    "path": ("path", "img_file", "image", "filename"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng"),
    "id": ("id",),
}


@dataclass(frozen=True)
class PhotoList:
    """N geotagged photos; Arrow and NumPy columns, so that millions of rows cost little.

    Attributes:
        ids: (N,) unique Arrow strings.
        paths: (N,) Arrow strings, absolute or relative to the working folder.
        latlon: (N, 2) float64 latitudes and longitudes in degrees.
    """

    ids: pa.LargeStringArray
    paths: pa.LargeStringArray
    latlon: np.ndarray

    def __len__(self) -> int:
        return len(self.latlon)


def read_photos(source: str | Path, image_root: str | Path | None = None) -> PhotoList:
    """Reads a list of photos.

    A table has the columns `path` (or IMG_FILE, image, filename), `latitude` (LAT, lat), `longitude` (LON,
    lon, lng) and optionally `id`, which defaults to the path as written. A folder is searched, with its
    subfolders, for JPEGs with a GPS position in their EXIF; the id is the path below the folder, and JPEGs
    without a position are left out with a warning.

    Args:
        source: a .csv file, a .parquet file or a folder.
        image_root: folder that a table's relative paths start from; by default the table's own.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: not such a file, columns missing, no rows, an empty path, a bad coordinate (the row is
            named, counted from 1 without the header), or ids that are not unique.
    """
    source = Path(source)
    if source.is_dir():
        if image_root is not None:
            raise ValueError(f"image_root is {image_root}, but {source} is a folder and needs none")
        return _read_folder(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    try:
        columns = _read_table(source)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} cannot be read: {str(error).splitlines()[0]}") from error
    paths = columns["path"]
    if not len(paths):
        raise ValueError(f"{source} has no rows")
    for name in ("path", "id"):
        empty = pc.fill_null(pc.equal(columns[name], ""), True)
        if pc.any(empty).as_py():
            raise ValueError(f"{source}: row {pc.index(empty, True).as_py() + 1} has an empty {name}")
    latlon = np.column_stack(
        [columns[name].to_numpy(zero_copy_only=False) for name in ("latitude", "longitude")]
    )
    check_latlon(latlon, str(source))
    counts = pc.value_counts(columns["id"])
    if len(counts) < len(paths):
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise ValueError(
            f"{source}: id {first['values']!r} stands in {first['counts']} rows, wanted unique ids"
        )
    root = source.parent if image_root is None else Path(image_root)
    start, separator = (pa.scalar(text, pa.large_string()) for text in (str(root), os.sep))
    joined = pc.binary_join_element_wise(start, paths, separator)
    return PhotoList(columns["id"], pc.if_else(pc.starts_with(paths, os.sep), paths, joined), latlon)


def _read_table(file: Path) -> dict[str, pa.Array]:
    suffix = file.suffix.lower()
    if suffix == ".csv":
        with open(file, newline="", encoding="utf-8-sig") as text:
            wanted = _match(next(csv.reader(text), []), file)
        types = {wanted[name]: _type(name) for name in wanted}  # never inferred: an id 007 stays 007
        options = pyarrow.csv.ConvertOptions(include_columns=list(wanted.values()), column_types=types)
        table = pyarrow.csv.read_csv(file, convert_options=options)
    elif suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            wanted = _match(parquet.schema_arrow.names, file)
            table = parquet.read(list(wanted.values()))
    else:
        raise ValueError(f"{file} is neither a .csv or .parquet file nor a folder")
    columns = {name: table[wanted[name]].cast(_type(name)).combine_chunks() for name in wanted}
    return {"id": columns["path"], **columns}


def _type(name: str) -> pa.DataType:
    return pa.float64() if name in ("latitude", "longitude") else pa.large_string()


def _match(found: list[str], file: Path) -> dict[str, str]:
    """The name that each of our columns has in the file."""
    by_lower_case = {name.strip().lower(): name for name in reversed(found)}
    matched = {
        column: next((by_lower_case[alias] for alias in aliases if alias in by_lower_case), None)
        for column, aliases in COLUMNS.items()
    }
    missing = [f"{c} (or {', '.join(COLUMNS[c][1:])})" for c in matched if c != "id" and matched[c] is None]
    if missing:
        raise ValueError(
            f"{file} lacks the columns {' and '.join(missing)}; it has {', '.join(found) or 'no columns'}"
        )
    return {column: name for column, name in matched.items() if name is not None}


def _read_folder(folder: Path) -> PhotoList:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise ValueError(f"{folder} holds no JPEG")
    latlon = np.array([_exif_latlon(file) for file in files])
    known = np.isfinite(latlon).all(axis=1)
    if not known.all():
        first = files[int(np.argmin(known))]
        message = f"{(~known).sum()} of {len(files)} JPEGs, {first} first, have no readable GPS position"
        if not known.any():
            raise ValueError(f"{folder}: {message}")
        warnings.warn(f"{folder}: {message} and are left out", stacklevel=3)
    kept = [file for file, has_position in zip(files, known, strict=True) if has_position]
    ids = pa.array([file.relative_to(folder).as_posix() for file in kept], pa.large_string())
    return PhotoList(ids, pa.array([str(file) for file in kept], pa.large_string()), latlon[known])


def _exif_latlon(file: Path) -> tuple[float, float]:
    """Latitude and longitude in degrees; NaN where the file has none, or none that can be."""
    try:
        with Image.open(file) as image:
            gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        latitude, longitude = (
            sum(float(part) / 60**i for i, part in enumerate(gps[value]))
            * (-1 if str(gps[reference]).strip("\0 ").upper() in ("S", "W") else 1)
            for value, reference in (
                (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef),
                (ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef),
            )
        )
        check_latlon(np.array([[latitude, longitude]]), str(file))
    except Exception:  # a damaged EXIF block raises anything, from struct.error to ZeroDivisionError
        return float("nan"), float("nan")
    return latitude, longitude
