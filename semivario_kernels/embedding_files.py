"""Embeddings from files: .npy and shards of it are mapped into memory, .npz and Parquet are read."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semivario_kernels.ranks import Ranks

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Array = npt.NDArray[Any]

PARQUET_ROWS = 4096  # read at a time
MAPPED_BYTES = 2**24  # copied or looked at at a time


def read_embeddings(
    path: Path, *, column: str | None = None, scratch: Path | None = None, ranks: Ranks | None = None
) -> Array:
    """Read (N, E) embeddings.

    Args:
        path: .npy; .npz; .parquet; or a folder of .npy shards, in the order that its meta.json lists them
            (then an unfinished store is refused), else in the order of the numbers in their names.
        column: of an .npz the array (default: "embeddings", or the only one); of Parquet the column of lists
            (default: the only one), or a pattern such as "e*" of number columns, in the order of their
            numbers.
        scratch: folder of the unnamed file that several shards are joined in; the system's by default.
        ranks: processes that read the same embeddings. The first one joins several shards in a file that all
            of them map, so `scratch` has to be a folder they share; each looks at its share of the values.

    Returns:
        (N, E) array of the file's dtype. A .npy and shards are mapped copy-on-write: the files do not change.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged file, shards that do not fit together, or a row with NaN or
            infinite values; the message names the file.
    """
    ranks = ranks or Ranks()
    if path.is_dir():
        embeddings = _join([map_npy(file) for file in shard_files(path)], path, scratch, ranks)
    elif path.suffix == ".npy":
        embeddings = map_npy(path)
    elif path.suffix == ".npz":
        embeddings = read_npz(path, column, "embeddings")
    elif path.suffix == ".parquet":
        embeddings = _read_parquet(path, column)
    else:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        raise ValueError(f"{path}: wanted .npy, .npz, .parquet or a folder of .npy shards")
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or embeddings.size == 0:
        raise ValueError(
            f"{path}: wanted (N, E) floating-point embeddings, got {embeddings.dtype} of shape "
            f"{embeddings.shape}"
        )
    if embeddings.dtype.itemsize > 8:
        raise ValueError(f"{path}: wanted float16, float32 or float64, got {embeddings.dtype}")
    bad = len(embeddings)
    for start, rows in list(_row_blocks(embeddings))[ranks.rank :: ranks.size]:
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            bad = start + int(np.argmin(finite))
            break
    bad = min(ranks.everyones(bad))
    if bad < len(embeddings):
        raise ValueError(f"{path}: row {bad} holds NaN or infinite values")
    return embeddings


def map_npy(path: Path) -> Array:
    """Map a .npy file into memory, copy-on-write."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers: {error}") from error
    # seen as a plain array: indexing np.memmap itself costs a Python call each time
    plain: Array = np.asarray(array)
    return plain if plain.dtype.isnative else plain.astype(plain.dtype.newbyteorder("="))


def read_npz(path: Path, name: str | None, usual_name: str) -> Array:
    """Read one array of an .npz file: the named one, the one of the usual name, or the only one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            chosen = name or (usual_name if usual_name in names else names[0] if len(names) == 1 else None)
            if chosen not in names:
                raise KeyError(name or usual_name)
            array: Array = archive[chosen]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except KeyError as error:
        raise ValueError(f"{path}: no array {error}; it holds {', '.join(names)}") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not an .npz file of numbers: {error}") from error
    return array


def shard_files(folder: Path, suffix: str = ".npy") -> list[Path]:
    """Files of a folder's shards in order; with a suffix other than .npy those that stand beside them."""
    meta_file = folder / "meta.json"
    if meta_file.exists():
        try:
            meta = json.loads(meta_file.read_bytes())
            names = [str(shard["name"]) for shard in meta["shards"]]
            complete = bool(meta.get("complete", True))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{meta_file}: wanted a list of shards with names: {error!r}") from error
        if not complete:
            raise ValueError(f"{folder}: unfinished: what writes it has to run again first")
    else:
        names = sorted((file.stem for file in folder.glob("*.npy")), key=natural_order)
    if not names:
        raise ValueError(f"{folder}: wanted a folder of .npy shards, found none")
    files = [folder / (name + suffix) for name in names]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such file; {folder} has {len(files)} shards")
    return files


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key by which shard-10 comes after shard-9."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if k % 2 else (-1, part) for k, part in enumerate(parts)]


def open_parquet(path: Path) -> ParquetFile:
    """Open a Parquet file, naming it where it is damaged and the extra where pyarrow is missing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{path}: Parquet is read by pyarrow, which is not installed: pip install pyarrow"
        ) from error
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from error


def _row_blocks(array: Array) -> Iterator[tuple[int, Array]]:
    rows = max(1, MAPPED_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def _join(shards: list[Array], folder: Path, scratch: Path | None, ranks: Ranks) -> Array:
    """One mapped array of all shards, in a file that goes when the processes do."""
    if len(shards) == 1:
        return shards[0]
    kinds = {(shard.dtype, shard.shape[1:]) for shard in shards}
    if len(kinds) > 1 or shards[0].ndim != 2:
        found = ", ".join(sorted(f"{dtype} of rows {shape}" for dtype, shape in kinds))
        raise ValueError(f"{folder}: wanted shards of one dtype and length of rows, got {found}")
    rows = sum(len(shard) for shard in shards)
    if rows == 0:
        return shards[0]
    shape = (rows, *shards[0].shape[1:])
    if ranks.size == 1:
        with tempfile.TemporaryFile(dir=scratch) as file:
            return _copied(shards, np.memmap(file, shards[0].dtype, "w+", shape=shape))

    def write() -> Path:
        with tempfile.NamedTemporaryFile(dir=scratch, prefix=".joined-", delete=False) as file:
            _copied(shards, np.memmap(file, shards[0].dtype, "w+", shape=shape))
            return Path(file.name)

    name = ranks.first_does(write)
    try:
        return np.asarray(np.memmap(name, shards[0].dtype, "c", shape=shape))
    finally:
        ranks.everyones(None)  # all have mapped it
        if ranks.is_first:
            name.unlink()


def _copied(shards: list[Array], joined: Array) -> Array:
    end = 0
    for shard in shards:
        for _, block in _row_blocks(shard):
            joined[end : end + len(block)] = block
            end += len(block)
    return np.asarray(joined)


def _read_parquet(path: Path, column: str | None) -> Array:
    import pyarrow as pa

    file = open_parquet(path)
    schema = file.schema_arrow

    def is_list(kind: Any) -> bool:
        types = pa.types
        return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))

    if column is None:
        names = [field.name for field in schema if is_list(field.type)]
        if len(names) != 1:
            raise ValueError(
                f"{path}: wanted one column of lists, found {len(names)} among {', '.join(schema.names)}; "
                "name one, or a pattern of number columns, with --column"
            )
    else:
        names = sorted((name for name in schema.names if fnmatchcase(name, column)), key=natural_order)
        if not names:
            raise ValueError(f"{path}: no column {column}; it holds {', '.join(schema.names)}")
    if len(names) > 1 and any(is_list(schema.field(name).type) for name in names):
        raise ValueError(f"{path}: wanted one column of lists or number columns, got {', '.join(names)}")

    embeddings: Array | None = None
    end = 0
    try:
        for batch in file.iter_batches(PARQUET_ROWS, columns=names):
            columns = [_numbers(path, name, batch[name]) for name in names]
            rows = columns[0] if columns[0].ndim == 2 else np.column_stack(columns)
            if embeddings is None:
                embeddings = np.empty((file.metadata.num_rows, rows.shape[1]), rows.dtype)
            if rows.shape[1] != embeddings.shape[1]:
                raise ValueError(
                    f"{path}: column {names[0]} holds lists of {embeddings.shape[1]} and of {rows.shape[1]} "
                    "numbers"
                )
            embeddings[end : end + len(rows)] = rows
            end += len(rows)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    return np.empty((0, 0), np.float32) if embeddings is None else embeddings


def _numbers(path: Path, name: str, column: Any) -> Array:
    """A batch of a column as (rows,) numbers, or as (rows, E) where it holds lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column
    lengths: list[int] = []
    nested = not pa.types.is_primitive(column.type)
    if nested:
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        values = column.flatten()
    if column.null_count or values.null_count:
        raise ValueError(f"{path}: column {name} holds missing values")
    if not pa.types.is_floating(values.type) and not (not nested and pa.types.is_integer(values.type)):
        raise ValueError(f"{path}: column {name} holds {column.type}, wanted floating-point numbers or lists")
    if len(lengths) > 1:
        raise ValueError(f"{path}: column {name} holds lists of {lengths[0]} and of {lengths[1]} numbers")
    numbers: Array = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(len(column), lengths[0]) if nested else numbers
