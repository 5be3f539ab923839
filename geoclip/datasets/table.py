"""Any CSV or Parquet file with a path, a latitude and a longitude per photo."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from geoclip.image_files import PathFiles
from geoclip.photos import AREAS, PhotoList, check_filled, check_photos

# names that published data sets give these columns, in order of preference; case does not matter
COLUMNS = {
    "path": ("path", "img_file", "img_path", "image_path", "image", "filename", "file_name", "img_id"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng", "long"),
}
OPTIONAL = {
    "id": ("id",),
    "country": ("unique_country", "country"),
    "region": ("unique_region", "region", "state"),
    "sub_region": ("unique_sub-region", "sub-region", "sub_region", "county"),
    "city": ("unique_city", "city"),
}
# The reader keeps some blocks per core in flight: smaller ones bound its memory, at no loss of speed.
_BLOCK_BYTES = 4 * 2**20
_AREA = pa.dictionary(pa.int32(), pa.string())


def read_table(source: Path, image_root: Path | None = None) -> PhotoList:
    """Reads a list of photos from a table.

    It has the columns `path` (or IMG_FILE, image, filename, ...), `latitude` (LAT, lat), `longitude` (LON,
    lon, lng), and optionally `id`, which defaults to the path as written, and `country`, `region`,
    `sub-region`, `city`.

    Args:
        source: a .csv or .parquet file.
        image_root: folder that relative paths start from; by default the table's own.

    Raises:
        ValueError: not such a file, columns missing, no rows, an empty path, a bad coordinate (the row is
            named, counted from 1 without the header), or ids that are not unique.
    """
    columns = read_columns(source, {**COLUMNS, **OPTIONAL}, needed=COLUMNS)
    if not len(columns["path"]):
        raise ValueError(f"{source} has no rows")
    check_filled(columns["path"], "path", str(source))
    root = source.parent if image_root is None else image_root
    images = PathFiles(join_paths(root, columns["path"]))
    ids = columns.get("id", columns["path"])
    return check_photos(PhotoList(ids, latlon_of(columns), images, areas_of(columns)), str(source))


def read_columns(
    file: Path, aliases: Mapping[str, tuple[str, ...]], *, needed: Mapping[str, object]
) -> dict[str, pa.Array]:
    """Reads columns of a CSV or Parquet file, and nothing else of it, without a loop over rows.

    Args:
        file: a .csv or .parquet file.
        aliases: for each of our columns the names it may have, in order of preference.
        needed: those of our columns that must be there.

    Returns:
        Our columns that were found: strings, float64 for `latitude` and `longitude`, dictionary-encoded
        strings with nulls for `AREAS`.

    Raises:
        ValueError: not such a file, or a column is missing.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".csv":
            with open(file, newline="", encoding="utf-8-sig") as text:
                header = next(csv.reader(text), [])
            wanted = match_columns(header, file, aliases, needed)
            table = _read_csv(file, wanted)
        elif suffix == ".parquet":
            with pq.ParquetFile(file) as parquet:
                wanted = match_columns(parquet.schema_arrow.names, file, aliases, needed)
                table = parquet.read(list(wanted.values()))
        else:
            raise ValueError(f"{file} is neither a .csv or .parquet file nor a folder")
        columns = {name: table[wanted[name]] for name in wanted}
        del table
        # one after the other, so that what was read of a column is gone before the next is put together
        return {name: _column(columns.pop(name), _type(name)) for name in wanted}
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _read_csv(file: Path, wanted: dict[str, str]) -> pa.Table:
    # never inferred: an id 007 stays 007
    types = {wanted[name]: _type(name) for name in wanted}
    convert = pyarrow.csv.ConvertOptions(include_columns=list(wanted.values()), column_types=types)
    read = pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES)
    try:
        return pyarrow.csv.read_csv(file, read, convert_options=convert)
    except pa.ArrowInvalid:
        # a quoted line break shifts the columns; a reader that allows them is slower
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        return pyarrow.csv.read_csv(file, read, parse, convert)


def _column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    if kind != _AREA:
        return column.cast(kind).combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    codes = column.cast(_AREA).unify_dictionaries().combine_chunks()
    names = codes.dictionary
    unknown = pc.index(names, "").as_py()  # −1 where there is none
    indices = codes.indices
    if unknown >= 0:  # CSV writes a missing name as an empty one
        indices = pc.if_else(pc.equal(indices, unknown), pa.scalar(None, pa.int32()), indices)
    return pa.DictionaryArray.from_arrays(indices, names)


def _type(name: str) -> pa.DataType:
    if name in AREAS:
        return _AREA
    return pa.float64() if name in ("latitude", "longitude") else pa.large_string()


def match_columns(
    found: list[str], file: Path, aliases: Mapping[str, tuple[str, ...]], needed: Mapping[str, object]
) -> dict[str, str]:
    """The name that each of our columns has in the file.

    Raises:
        ValueError: a needed one has none.
    """
    by_lower_case = {name.strip().lower(): name for name in reversed(found)}
    matched = {
        column: next((by_lower_case[alias] for alias in names if alias in by_lower_case), None)
        for column, names in aliases.items()
    }
    missing = [f"{c} (or {', '.join(aliases[c][1:])})" for c in needed if matched[c] is None]
    if missing:
        if any(map(_is_number, found)):
            raise ValueError(
                f"{file} has no header: wanted names of columns in its first line, such as "
                f"{','.join(needed)}, got {','.join(found)}"
            )
        raise ValueError(
            f"{file} lacks the columns {' and '.join(missing)}; it has {', '.join(found) or 'no columns'}"
        )
    return {column: name for column, name in matched.items() if name is not None}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def latlon_of(columns: Mapping[str, pa.Array]) -> np.ndarray:
    """(N, 2) float64."""
    return np.column_stack(
        [columns[name].to_numpy(zero_copy_only=False) for name in ("latitude", "longitude")]
    )


def areas_of(columns: Mapping[str, pa.Array]) -> dict[str, pa.DictionaryArray]:
    """The administrative areas among the columns."""
    return {name: columns[name] for name in AREAS if name in columns}


def join_paths(root: Path, paths: pa.LargeStringArray) -> pa.LargeStringArray:
    """Relative paths below a folder, absolute ones as they are."""
    start, separator = (pa.scalar(text, pa.large_string()) for text in (str(root), os.sep))
    joined = pc.binary_join_element_wise(start, paths, separator)
    return pc.if_else(pc.starts_with(paths, os.sep), paths, joined)
