"""Image embeddings on disk: float16 shards that are memory-mapped, written once, resumable.

A store is a folder:

    meta.json              format, version, dim, dtype, views, complete, info, shards: [{"name", "rows"}, ...]
    shard-00000.npy        (rows, dim) float16
    shard-00000.views.npy  (rows, views, dim) float16: other pictures of the same photos, where there are any
    shard-00000.parquet    the same rows' id (string), latitude, longitude (float64, degrees), and where known
                           country, region, sub_region, city (dictionary-encoded strings)

A shard's Parquet file is written last: with it the shard is there, whole. Process r > 0 of several that
write at once calls its shards shard-000r-00000, so that none waits for another and any number of processes
can go on. A finished store lists its shards in meta.json. A kill at any moment loses the unfinished shard
and doubles nothing.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from geoclip.coordinates import check_latlon
from geoclip.open_files import allow_open_files
from geoclip.photos import AREAS
from geoclip.writer_lock import hold_lock
from semivario_kernels.atomic import write_atomically

FORMAT = "geoclip-embeddings"
VERSION = 1
DTYPE = np.dtype("<f2")
_ROWS_AT_ONCE = 8192  # 25 MB of 768 numbers
_SHARD = re.compile(r"shard-(\d+-)?\d+")


def is_store(path: str | Path) -> bool:
    """Whether a path is a folder with an embedding store's meta.json, whatever else is wrong with it."""
    try:
        return bool(json.loads(Path(path, "meta.json").read_bytes()).get("format") == FORMAT)
    except (OSError, ValueError, AttributeError):
        return False


class EmbeddingStore:
    """A store opened for reading; `EmbeddingStore.open(path)` makes one.

    Pickling one (for a worker process) sends the path only; the other side maps the files itself.

    Attributes:
        path: the folder.
        dim: length of an embedding.
        views: other pictures of each photo that the store holds; 0 where it has the photos alone.
        info: what the writer said about the embeddings (backbone, source, split, ...).
        latlon: (N, 2) float64 latitudes and longitudes in degrees.
    """

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.dim: int = meta["dim"]
        self.views: int = meta["views"]
        self.info: dict[str, Any] = meta["info"]
        shards = meta["shards"] if meta["complete"] else _written_shards(path)
        self._names = [shard["name"] for shard in shards]
        rows = [shard["rows"] for shard in shards]
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._starts = self._ends - np.asarray(rows, dtype=np.int64)
        named = list(zip(self._names, rows, strict=True))
        allow_open_files(len(named) * (2 if self.views else 1))
        self._shards = [self._map(f"{name}.npy", (n, self.dim)) for name, n in named]
        self._view_shards = [
            self._map(f"{name}.views.npy", (n, self.views, self.dim)) for name, n in named if self.views
        ]
        places = [self._read_places(name, n) for name, n in named]
        self.latlon = np.concatenate([np.empty((0, 2)), *places])

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingStore:
        """Opens a complete store and checks every shard's size and coordinates.

        Args:
            path: the folder that `geoclip embed` or an `EmbeddingWriter` wrote.

        Raises:
            FileNotFoundError: there is no such folder, or a shard that meta.json lists is missing.
            ValueError: the folder is no embedding store, is incomplete or empty, or a shard is damaged.
            OSError: a shard cannot be opened, for instance one more than the process may hold.
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
        return self._column("id", pa.large_string())

    @cached_property
    def areas(self) -> dict[str, pa.DictionaryArray]:
        """Administrative areas by name, those of country, region, sub_region, city that some shard has.

        (N,) dictionary-encoded strings each, null where a photo's is not known: `.indices` are its codes,
        `.dictionary` their names.
        """
        kind = pa.dictionary(pa.int32(), pa.string())
        found = {name for file in self._tables() for name in file.schema_arrow.names}
        columns = {name: self._column(name, kind) for name in AREAS if name in found}
        return {name: column.unify_dictionaries().combine_chunks() for name, column in columns.items()}

    def read(self, indices: ArrayLike, views: ArrayLike | None = None) -> np.ndarray:
        """Reads rows in the order asked for; from the disk they come in the disk's order.

        Args:
            indices: (n,) integers in [0, N), in any order, repeats allowed.
            views: (n,) integers in [0, self.views], or one for all: which picture of each photo, 0 the photo
                itself, as by default.

        Returns:
            (n, dim) float32.

        Raises:
            ValueError: indices or views are no such integers, or a row read is not finite.
        """
        indices = _integers("indices", indices, len(self) - 1)
        wanted = None
        if views is not None:
            wanted = np.broadcast_to(_integers("views", np.atleast_1d(views), self.views), indices.shape)
        out = np.empty((len(indices), self.dim), dtype=np.float32)
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        bounds = np.searchsorted(ordered, self._ends)
        for shard, (begin, end) in enumerate(zip([0, *bounds], bounds, strict=False)):
            if begin < end:
                here, rows = order[begin:end], ordered[begin:end] - self._starts[shard]
                out[here] = self._shards[shard][rows]
                if wanted is not None:
                    other = wanted[here] > 0
                    chosen = here[other]
                    out[chosen] = self._view_shards[shard][rows[other], wanted[chosen] - 1]
        finite = np.isfinite(out).all(axis=1)
        if not finite.all():
            raise ValueError(f"{self.path}: row {indices[np.argmin(finite)]} holds NaN or infinite values")
        return out

    def copy(self, indices: ArrayLike) -> np.ndarray:
        """Reads rows that are kept from then on: as they are stored, and without their pages staying mapped.

        Args:
            indices: (n,) integers in [0, N), in any order, repeats allowed.

        Returns:
            (n, dim) float16.

        Raises:
            ValueError: as in `read`.
        """
        indices = np.asarray(indices)
        out = np.empty((len(indices), self.dim), dtype=DTYPE)
        for start in range(0, len(indices), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            out[some] = self.read(indices[some])
            self._unmap_pages()
        return out

    def all(self) -> np.ndarray:
        """All rows, (N, dim) float16: the memory map itself for a single shard, else a copy in memory."""
        return self._shards[0] if len(self._shards) == 1 else np.concatenate(self._shards)

    def _unmap_pages(self) -> None:
        """Take what was read out of this process' resident set; the system's file cache keeps it."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            return
        for array in self._shards:
            base: Any = array
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap):  # an empty shard has none
                base.madvise(mmap.MADV_DONTNEED)

    def _map(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        file = self.path / name
        try:
            # seen as a plain array: indexing np.memmap itself costs a Python call each time
            array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} is missing, though meta.json lists it") from None
        except (ValueError, EOFError, OSError) as error:
            raise _refused_or_damaged(file, error) from error
        if array.shape != shape or array.dtype != DTYPE:
            raise ValueError(
                f"{file} holds {array.dtype} of shape {array.shape}, though meta.json says float16 of shape "
                f"{shape}"
            )
        return array

    def _tables(self) -> Iterator[pq.ParquetFile]:
        for name in self._names:  # one open at a time
            with pq.ParquetFile(self.path / f"{name}.parquet") as file:
                yield file

    def _column(self, name: str, kind: pa.DataType) -> pa.ChunkedArray:
        """A column of all shards, null in those that have none of the name."""
        chunks = []
        for file in self._tables():
            if name in file.schema_arrow.names:
                chunks += file.read([name])[name].cast(kind).chunks
            else:
                chunks.append(pa.nulls(file.metadata.num_rows, kind))
        return pa.chunked_array(chunks, kind)

    def _read_places(self, name: str, rows: int) -> np.ndarray:
        file = self.path / f"{name}.parquet"
        try:
            table = pq.ParquetFile(file).read(["latitude", "longitude"])
            latlon = np.column_stack([table["latitude"].to_numpy(), table["longitude"].to_numpy()])
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} is missing, though meta.json lists it") from None
        except (pa.ArrowException, KeyError, OSError) as error:
            raise _refused_or_damaged(file, error) from error
        if len(latlon) != rows:
            raise ValueError(f"{file} holds {len(latlon)} rows, though meta.json says {rows}")
        return check_latlon(latlon, str(file))


class EmbeddingWriter:
    """Writes a store shard by shard; opening a folder again goes on after its finished shards.

        with EmbeddingWriter(folder, 768, info={"backbone": "ViT-L-14"}) as writer:
            writer.append(ids, latlon, embeddings)

    Leaving the block marks the store complete; leaving it by an exception keeps the rows appended so far and
    leaves the store incomplete. The caller appends every id once: what is there already, `finished()` tells.

    Several processes may write one store, each with a rank of its own. Rank 0 opens it before the others,
    calls `reopen` before any of them writes, and is closed after them. A lock on `.writer-<rank>`, an
    empty file that stays, keeps a second writer of a rank out until this one is closed or its process ends.

    Args:
        path: the folder; made if missing, refused if it holds other files.
        dim: length of an embedding.
        info: JSON-able facts about the embeddings; a store that exists must have been begun with the same.
        views: other pictures of each photo, stored beside it.
        rows_per_shard: a shard is written when so many rows have been appended.
        rank: number of this process among those that write the store.

    Raises:
        ValueError: bad arguments, a folder of something else, or one begun with another dim, views or info.
        BlockingIOError: another writer of this rank is at work there.
        OSError: the folder cannot be made or written.
    """

    def __init__(
        self,
        path: str | Path,
        dim: int,
        *,
        info: dict[str, Any] | None = None,
        views: int = 0,
        rows_per_shard: int = 16384,
        rank: int = 0,
    ) -> None:
        for name, value, least in (
            ("dim", dim, 1),
            ("rows_per_shard", rows_per_shard, 1),
            ("views", views, 0),
            ("rank", rank, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, wanted at least {least}")
        self.path = Path(path)
        self._rank = rank
        self._rows_per_shard = rows_per_shard
        self._columns: list[pa.Table] = []
        self._embeddings: list[np.ndarray] = []
        self._views: list[np.ndarray] = []
        info = json.loads(json.dumps(info or {}))  # as it will be read back, so that the two compare equal
        meta = self.path / "meta.json"
        if meta.exists():
            _check_same(self.path, _read_meta(self.path), {"dim": dim, "views": views, "info": info})
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            # hidden files may be what an earlier run was killed over
            if any(not file.name.startswith(".") for file in self.path.iterdir()):
                raise ValueError(f"{self.path} holds other files: choose an empty or new folder")
        # only now, so that a folder of something else stays as it is
        self._lock = self._hold_lock()
        if meta.exists():
            self._meta = _read_meta(self.path)  # again: the writer before may just have closed it
        else:
            fixed = {"format": FORMAT, "version": VERSION, "dim": dim, "dtype": "float16", "views": views}
            self._write_meta({**fixed, "complete": False, "info": info, "shards": []})
        self._next = 1 + max(
            (number for of_rank, number in map(_numbers, self._written()) if of_rank == rank), default=-1
        )

    @property
    def rows_done(self) -> int:
        """Rows in finished shards: safe on disk."""
        return sum(shard["rows"] for shard in _written_shards(self.path))

    @property
    def complete(self) -> bool:
        """Whether the store on disk is marked complete."""
        return bool(self._meta["complete"])

    def finished(self) -> EmbeddingStore:
        """The finished shards as a store, complete or not: whose ids need not be computed again."""
        return EmbeddingStore(self.path, self._meta)

    def reopen(self) -> None:
        """Marks a complete store incomplete: it will grow."""
        if self.complete:
            self._write_meta({**self._meta, "complete": False, "shards": []})

    def append(
        self,
        ids: Iterable[Any],
        latlon: ArrayLike,
        embeddings: ArrayLike,
        *,
        views: ArrayLike | None = None,
        areas: Mapping[str, pa.DictionaryArray] | None = None,
    ) -> None:
        """Adds rows; they are safe on disk when their shard is full or `flush` returns.

        Args:
            ids: n strings (anything else is stored as its `str`).
            latlon: (n, 2) latitudes and longitudes in degrees.
            embeddings: (n, dim) of any floating dtype, on the CPU; stored as float16.
            views: (n, views, dim) of other pictures, where the store has them.
            areas: (n,) dictionary-encoded strings by name, some of `AREAS`.

        Raises:
            ValueError: the shapes disagree, a coordinate is bad, or an embedding is not finite in float16.
            OSError: the shard cannot be written.
        """
        ids = [str(i) for i in ids]
        latlon = np.asarray(latlon, dtype=np.float64)
        count, dim, others = len(ids), self._meta["dim"], self._meta["views"]
        if latlon.shape != (count, 2):
            raise ValueError(f"latlon has shape {latlon.shape}, wanted {(count, 2)}")
        latlon = check_latlon(latlon, "latlon")
        if (views is None) != (others == 0):
            raise ValueError(
                f"views: wanted {others} of each photo, got {'none' if views is None else 'some'}"
            )
        stored = _half("embeddings", embeddings, (count, dim), ids)
        stored_views = None if views is None else _half("views", views, (count, others, dim), ids)
        table = {
            "id": pa.array(ids, pa.large_string()),
            "latitude": latlon[:, 0],
            "longitude": latlon[:, 1],
            **{name: column.cast(pa.string()) for name, column in (areas or {}).items()},
        }
        self._columns.append(pa.table(table))
        self._embeddings.append(stored)
        if stored_views is not None:
            self._views.append(stored_views)
        while self._rows_held() >= self._rows_per_shard:
            self._write_shard(self._rows_per_shard)

    def flush(self) -> None:
        """Writes the rows appended so far as a shard, however short."""
        if self._rows_held():
            self._write_shard(self._rows_held())

    def close(self) -> None:
        """Flushes; rank 0 then marks the store complete."""
        self.flush()
        if self._rank == 0 and not self.complete:
            self._write_meta({**self._meta, "complete": True, "shards": _written_shards(self.path)})
            self._remove_leftovers()
        self._lock.close()

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
            self._lock.close()

    def _hold_lock(self) -> BinaryIO:
        try:
            return hold_lock(self.path / f".writer-{self._rank:04d}")
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self.path} is being written by another process: wait until it has ended, or end it"
            ) from error

    def _rows_held(self) -> int:
        return sum(len(block) for block in self._embeddings)

    def _write_shard(self, rows: int) -> None:
        if self._rank == 0:
            self.reopen()
        table = pa.concat_tables(self._columns, promote_options="default")
        embeddings = np.concatenate(self._embeddings)
        views = np.concatenate(self._views) if self._views else None
        columns = {
            name: table[name][:rows].combine_chunks().dictionary_encode()
            if name in AREAS
            else table[name][:rows]
            for name in table.column_names
        }
        # a number that only a kill left behind, without its table, is used again
        before = "" if self._rank == 0 else f"{self._rank:04d}-"
        name = f"shard-{before}{self._next:05d}"
        if views is not None:
            write_atomically(self.path / f"{name}.views.npy", partial(_write_array, views[:rows]))
            self._views = [views[rows:]]
        write_atomically(self.path / f"{name}.npy", partial(_write_array, embeddings[:rows]))
        shard = pa.table(columns)
        write_atomically(self.path / f"{name}.parquet", lambda file: pq.write_table(shard, file))
        self._next += 1
        self._columns, self._embeddings = [table[rows:]], [embeddings[rows:]]

    def _written(self) -> list[str]:
        return [shard["name"] for shard in _written_shards(self.path)]

    def _remove_leftovers(self) -> None:
        """Removes the files of shards that a kill left without a table."""
        listed = {shard["name"] for shard in self._meta["shards"]}
        for file in self.path.iterdir():
            name = file.name.removeprefix(".").partition(".")[0]
            if _SHARD.fullmatch(name) and (name not in listed or file.name.startswith(".")):
                file.unlink(missing_ok=True)

    def _write_meta(self, meta: dict[str, Any]) -> None:
        text = json.dumps(meta, indent=1)
        write_atomically(self.path / "meta.json", lambda file: file.write(text.encode()))
        self._meta = meta  # only now: what the disk refused did not happen


def _integers(name: str, values: ArrayLike, largest: int) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: {array.dtype} of shape {array.shape}, wanted (n,) integers")
    if array.size and (array.min() < 0 or array.max() > largest):
        raise ValueError(f"{name}: {array.min()} to {array.max()}, wanted 0 to {largest}")
    return array


def _half(name: str, values: ArrayLike, shape: tuple[int, ...], ids: list[str]) -> np.ndarray:
    with np.errstate(over="ignore"):  # what overflows is refused below
        array = np.asarray(values).astype(DTYPE)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, wanted {shape}")
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if not finite.all():
        raise ValueError(f"the embedding of {ids[np.argmin(finite)]!r} is NaN or beyond float16's 65504")
    return array


def _write_array(array: np.ndarray, file: BinaryIO) -> None:
    """What np.save writes, by calls that say why they fail: `ndarray.tofile` forgets the disk's reason."""
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)
    file.write(np.ascontiguousarray(array).data)


def _refused_or_damaged(file: Path, error: Exception) -> Exception:
    """What the system refuses, such as another open file, says nothing about what the file holds."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        return OSError(error.errno, os.strerror(error.errno), str(file))
    return ValueError(f"{file} is damaged: {error}")


def _numbers(name: str) -> tuple[int, int]:
    """Rank and number of a shard's name."""
    *rank, number = (int(part) for part in name.split("-")[1:])
    return (rank[0] if rank else 0), number


def _written_shards(path: Path) -> list[dict[str, Any]]:
    """The shards whose table is there, by rank and number."""
    names = [file.stem for file in path.glob("shard-*.parquet") if _SHARD.fullmatch(file.stem)]
    shards = []
    for name in sorted(names, key=_numbers):
        file = path / f"{name}.parquet"
        try:
            shards.append({"name": name, "rows": pq.read_metadata(file).num_rows})
        except (pa.ArrowException, OSError) as error:
            raise _refused_or_damaged(file, error) from error
    return shards


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
        and isinstance(meta.get("views"), int)
        and isinstance(meta.get("info"), dict)
        and isinstance(meta.get("complete"), bool)
        and isinstance(meta.get("shards"), list)
        and all(
            isinstance(s, dict) and isinstance(s.get("rows"), int) and _SHARD.fullmatch(str(s.get("name")))
            for s in meta["shards"]
        )
    )
    if not well_formed:
        raise ValueError(
            f"{file} is damaged: dim, views, info, complete or shards is missing or of another type"
        )
    return meta


def _check_same(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    there, here = ({"dim": m["dim"], "views": m["views"], **m["info"]} for m in (there, here))
    keys = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if keys:
        differences = ", ".join(f"{key} {there.get(key)!r} there and {here.get(key)!r} here" for key in keys)
        raise ValueError(f"{path} holds other embeddings ({differences}): choose another folder or delete it")
