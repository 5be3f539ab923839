"""Image embeddings on disk: float16 shards that are memory-mapped, written once, resumable.

A store is a folder:

    meta.json            format, version, dim, dtype, complete, info, shards: [{"name", "rows"}, ...]
    shard-00000.npy      (rows, dim) float16
    shard-00000.parquet  the same rows' id (string), latitude, longitude (float64, degrees)

Only the shards that meta.json lists exist for a reader, and meta.json is replaced after its shard's two
files: a kill at any moment loses the unfinished shard and doubles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from geoclip.coordinates import check_latlon
from semivario_kernels.atomic import write_atomically

FORMAT = "geoclip-embeddings"
VERSION = 1
DTYPE = np.dtype("<f2")


class EmbeddingStore:
    """A store opened for reading; `EmbeddingStore.open(path)` makes one.

    Pickling one (for a worker process) sends the path only; the other side maps the files itself.

    Attributes:
        path: the folder.
        dim: length of an embedding.
        info: what the writer said about the embeddings (backbone, source, ...).
        latlon: (N, 2) float64 latitudes and longitudes in degrees.
    """

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.dim: int = meta["dim"]
        self.info: dict[str, Any] = meta["info"]
        self._names = [shard["name"] for shard in meta["shards"]]
        rows = [shard["rows"] for shard in meta["shards"]]
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._starts = self._ends - np.asarray(rows, dtype=np.int64)
        self._shards = [self._map(name, n) for name, n in zip(self._names, rows, strict=True)]
        places = [self._read_columns(name, n) for name, n in zip(self._names, rows, strict=True)]
        self.latlon = np.concatenate([np.empty((0, 2)), *places])

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingStore:
        """Opens a complete store and checks every shard's size and coordinates.

        Raises:
            FileNotFoundError: there is no such folder, or a shard that meta.json lists is missing.
            ValueError: the folder is no embedding store, is incomplete or empty, or a shard is damaged.
        """
        path = Path(path)
        meta = _read_meta(path)
        if not meta["complete"]:
            raise ValueError(f"{path} is an unfinished embedding store: run its embedding command again")
        if not meta["shards"]:
            raise ValueError(f"{path} is an embedding store without a single row")
        return cls(path, meta)

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingStore.open, (self.path,)

    def __len__(self) -> int:
        return len(self.latlon)

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """The N ids as Arrow strings, one chunk a shard; `.to_pylist()` makes a list of them."""
        files = [pq.ParquetFile(self.path / f"{name}.parquet") for name in self._names]
        return pa.chunked_array([c for f in files for c in f.read(["id"])["id"].chunks], pa.large_string())

    def read(self, indices: ArrayLike) -> np.ndarray:
        """Reads rows in the order asked for.

        Args:
            indices: (n,) integers in [0, N), in any order, repeats allowed.

        Returns:
            (n, dim) float32.

        Raises:
            ValueError: indices are no such integers, or a row read is not finite.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise ValueError(f"indices: {indices.dtype} of shape {indices.shape}, wanted (n,) integers")
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise ValueError(f"indices: {indices.min()} to {indices.max()}, wanted 0 to {len(self) - 1}")
        out = np.empty((len(indices), self.dim), dtype=np.float32)
        shard_of = np.searchsorted(self._ends, indices, side="right")
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            out[here] = self._shards[shard][indices[here] - self._starts[shard]]
        finite = np.isfinite(out).all(axis=1)
        if not finite.all():
            raise ValueError(f"{self.path}: row {indices[np.argmin(finite)]} holds NaN or infinite values")
        return out

    def all(self) -> np.ndarray:
        """All rows, (N, dim) float16: the memory map itself for a single shard, else a copy in memory."""
        return self._shards[0] if len(self._shards) == 1 else np.concatenate(self._shards)

    def _map(self, name: str, rows: int) -> np.ndarray:
        file = self.path / f"{name}.npy"
        try:
            # seen as a plain array: indexing np.memmap itself costs a Python call each time
            array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} is missing, though meta.json lists it") from None
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if array.shape != (rows, self.dim) or array.dtype != DTYPE:
            raise ValueError(
                f"{file} holds {array.dtype} of shape {array.shape}, "
                f"though meta.json says float16 of shape {(rows, self.dim)}"
            )
        return array

    def _read_columns(self, name: str, rows: int) -> np.ndarray:
        file = self.path / f"{name}.parquet"
        try:
            table = pq.ParquetFile(file).read(["latitude", "longitude"])
            latlon = np.column_stack([table["latitude"].to_numpy(), table["longitude"].to_numpy()])
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} is missing, though meta.json lists it") from None
        except (pa.ArrowException, KeyError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if len(latlon) != rows:
            raise ValueError(f"{file} holds {len(latlon)} rows, though meta.json says {rows}")
        check_latlon(latlon, str(file))
        return latlon


class EmbeddingWriter:
    """Writes a store shard by shard; opening a folder again goes on after its last finished shard.

        with EmbeddingWriter(folder, 768, info={"backbone": "ViT-L-14"}) as writer:
            writer.append(ids, latlon, embeddings)

    Leaving the block marks the store complete; leaving it by an exception keeps the rows appended so far and
    leaves the store incomplete. The caller appends every id once: what is there already, `finished()` tells.

    Args:
        path: the folder; made if missing, refused if it holds other files.
        dim: length of an embedding.
        info: JSON-able facts about the embeddings; a store that exists must have been begun with the same.
        rows_per_shard: a shard is written when so many rows have been appended.

    Raises:
        ValueError: bad arguments, a folder of something else, or one begun with another dim or info.
        OSError: the folder cannot be made or written.
    """

    def __init__(
        self, path: str | Path, dim: int, *, info: dict[str, Any] | None = None, rows_per_shard: int = 16384
    ) -> None:
        for name, value in (("dim", dim), ("rows_per_shard", rows_per_shard)):
            if value < 1:
                raise ValueError(f"{name} is {value}, wanted at least 1")
        self.path = Path(path)
        self._rows_per_shard = rows_per_shard
        self._ids: list[str] = []
        self._latlon: list[np.ndarray] = []
        self._embeddings: list[np.ndarray] = []
        info = json.loads(json.dumps(info or {}))  # as it will be read back, so that the two compare equal
        if (self.path / "meta.json").exists():
            self._meta = _read_meta(self.path)
            _check_same(self.path, self._meta, {"dim": dim, "info": info})
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            # hidden files may be what an earlier run was killed over
            if any(not file.name.startswith(".") for file in self.path.iterdir()):
                raise ValueError(f"{self.path} holds other files: choose an empty or new folder")
            fixed = {"format": FORMAT, "version": VERSION, "dim": dim, "dtype": "float16"}
            self._write_meta({**fixed, "complete": False, "info": info, "shards": []})

    @property
    def rows_done(self) -> int:
        """Rows in finished shards: safe on disk."""
        return sum(shard["rows"] for shard in self._meta["shards"])

    @property
    def complete(self) -> bool:
        """Whether the store on disk is marked complete."""
        return bool(self._meta["complete"])

    def finished(self) -> EmbeddingStore:
        """The finished shards as a store, complete or not: whose ids need not be computed again."""
        return EmbeddingStore(self.path, self._meta)

    def append(self, ids: Iterable[Any], latlon: ArrayLike, embeddings: ArrayLike) -> None:
        """Adds rows; they are safe on disk when their shard is full or `flush` returns.

        Args:
            ids: n strings (anything else is stored as its `str`).
            latlon: (n, 2) latitudes and longitudes in degrees.
            embeddings: (n, dim) of any floating dtype, on the CPU; stored as float16.

        Raises:
            ValueError: the shapes disagree, a coordinate is bad, or an embedding is not finite in float16.
            OSError: the shard cannot be written.
        """
        ids = [str(i) for i in ids]
        latlon = np.asarray(latlon, dtype=np.float64)
        with np.errstate(over="ignore"):  # what overflows is refused below
            embeddings = np.asarray(embeddings).astype(DTYPE)
        wanted = (len(ids), self._meta["dim"])
        if embeddings.shape != wanted:
            raise ValueError(f"embeddings has shape {embeddings.shape}, wanted {wanted}")
        if latlon.shape != (len(ids), 2):
            raise ValueError(f"latlon has shape {latlon.shape}, wanted {(len(ids), 2)}")
        check_latlon(latlon, "latlon")
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            raise ValueError(f"the embedding of {ids[np.argmin(finite)]!r} is NaN or beyond float16's 65504")
        self._ids += ids
        self._latlon.append(latlon)
        self._embeddings.append(embeddings)
        while len(self._ids) >= self._rows_per_shard:
            self._write_shard(self._rows_per_shard)

    def flush(self) -> None:
        """Writes the rows appended so far as a shard, however short."""
        if self._ids:
            self._write_shard(len(self._ids))

    def close(self) -> None:
        """Flushes and marks the store complete."""
        self.flush()
        if not self.complete:
            self._write_meta({**self._meta, "complete": True})

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # the first error is the one to show
                self.flush()

    def _write_shard(self, rows: int) -> None:
        latlon, embeddings = np.concatenate(self._latlon), np.concatenate(self._embeddings)
        # the finished shards are numbered without gaps, so this also overwrites what a kill left unlisted
        name = f"shard-{len(self._meta['shards']):05d}"
        table = pa.table(
            {
                "id": pa.array(self._ids[:rows], pa.large_string()),
                "latitude": latlon[:rows, 0],
                "longitude": latlon[:rows, 1],
            }
        )
        write_atomically(self.path / f"{name}.npy", lambda file: np.save(file, embeddings[:rows]))
        write_atomically(self.path / f"{name}.parquet", lambda file: pq.write_table(table, file))
        shards = [*self._meta["shards"], {"name": name, "rows": rows}]
        self._write_meta({**self._meta, "complete": False, "shards": shards})
        self._ids, self._latlon, self._embeddings = self._ids[rows:], [latlon[rows:]], [embeddings[rows:]]

    def _write_meta(self, meta: dict[str, Any]) -> None:
        text = json.dumps(meta, indent=1)
        write_atomically(self.path / "meta.json", lambda file: file.write(text.encode()))
        self._meta = meta  # only now: what the disk refused did not happen


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such embedding store")
    file = path / "meta.json"
    try:
        meta = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is not an embedding store: it has no meta.json") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{path} is not an embedding store: its meta.json does not say {FORMAT!r}")
    if meta.get("version") != VERSION or meta.get("dtype") != "float16":
        raise ValueError(
            f"{path} has format version {meta.get('version')} and dtype {meta.get('dtype')}; "
            f"wanted version {VERSION} and float16"
        )
    well_formed = (
        isinstance(meta.get("dim"), int)
        and isinstance(meta.get("info"), dict)
        and isinstance(meta.get("complete"), bool)
        and isinstance(meta.get("shards"), list)
        and all(
            isinstance(s, dict)
            and isinstance(s.get("rows"), int)
            and re.fullmatch(r"shard-\d+", str(s.get("name")))
            for s in meta["shards"]
        )
    )
    if not well_formed:
        raise ValueError(f"{file} is damaged: dim, info, complete or shards is missing or of another type")
    return meta


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    there = {"dim": there["dim"], **there["info"]}
    here = {"dim": here["dim"], **here["info"]}
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if keys:
        differences = ", ".join(f"{key} {there.get(key)!r} there and {here.get(key)!r} here" for key in keys)
        raise ValueError(f"{path} holds other embeddings ({differences}): choose another folder or delete it")
