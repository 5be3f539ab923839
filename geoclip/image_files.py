"""Where the bytes of a list's images lie: files, folders of parts, members of zip and tar archives.

Nothing is extracted, and a row costs a few numbers, not an object. Archives are read by position with
`pread`, which shares no file position between processes: a reader may be forked or pickled into any worker.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # zip: signature, ..., lengths of name and extra field
_OPEN_ARCHIVES = 128  # file descriptors kept by a process, below the usual limit of 1,024


class ImageFiles(Protocol):
    """The images of N rows."""

    def name(self, row: int) -> str:
        """What messages and lists call the image of a row: a path."""

    def read(self, row: int) -> bytes:
        """The image file's bytes.

        Raises:
            OSError: it is missing, or cannot be read; the message names it.
            ValueError: it is damaged inside its archive.
        """

    def present(self) -> np.ndarray:
        """(N,) bool: whether there is such a file, whatever is in it."""

    def take(self, rows: np.ndarray) -> ImageFiles:
        """The images of some rows, in their order."""


@dataclass(frozen=True)
class PathFiles:
    """One path per row.

    Attributes:
        paths: (N,) Arrow strings, absolute or relative to the working folder.
    """

    paths: pa.LargeStringArray

    def name(self, row: int) -> str:
        """The path as it is."""
        path: str = self.paths[row].as_py()
        return path

    def read(self, row: int) -> bytes:
        """The file's bytes."""
        return _read_file(self.name(row))

    def present(self) -> np.ndarray:
        """Whether each path exists: asks the file system for every one."""
        return np.fromiter((os.path.exists(path.as_py()) for path in self.paths), bool, len(self.paths))

    def take(self, rows: np.ndarray) -> PathFiles:
        """Some rows, in their order."""
        return PathFiles(self.paths.take(pa.array(rows)))


@dataclass(frozen=True)
class Folder:
    """A part of a data set: a folder of `<stem><suffix>`."""

    path: Path
    suffix: str

    def name(self, stem: str, member: int) -> str:
        """The image's path."""
        return f"{self.path}/{stem}{self.suffix}"

    def read(self, stem: str, member: int) -> bytes:
        """The file's bytes."""
        return _read_file(self.name(stem, member))


@dataclass(frozen=True)
class Archive:
    """A part of a data set: an archive with M images.

    Attributes:
        path: the .zip or .tar file.
        starts: (M,) int64: byte where the member begins; for a zip its local header, else its data.
        sizes: (M,) int64: bytes in the archive.
        deflated: (M,) bool for a zip, whose members are stored or deflated; None for plain data.
        checksums: (M,) uint32 CRC-32 of a zip's members.
    """

    path: Path
    starts: np.ndarray
    sizes: np.ndarray
    deflated: np.ndarray | None = None
    checksums: np.ndarray | None = None

    def name(self, stem: str, member: int) -> str:
        """The archive's path and the name in it."""
        return f"{self.path}/{stem}"

    def read(self, stem: str, member: int) -> bytes:
        """The member's bytes, against its checksum where the archive has one; ValueError where damaged."""
        start, size = int(self.starts[member]), int(self.sizes[member])
        if self.deflated is None or self.checksums is None:
            return _HANDLES.read(self.path, start, size)
        header = _LOCAL_HEADER.unpack(_HANDLES.read(self.path, start, _LOCAL_HEADER.size))
        if header[0] != b"PK\x03\x04":
            raise ValueError(f"{self.name(stem, member)}: damaged: no member where the archive's list says")
        data = _HANDLES.read(self.path, start + _LOCAL_HEADER.size + header[-2] + header[-1], size)
        if self.deflated[member]:
            try:
                data = zlib.decompress(data, -zlib.MAX_WBITS)
            except zlib.error as error:
                raise ValueError(f"{self.name(stem, member)}: damaged: {error}") from None
        if zlib.crc32(data) != self.checksums[member]:
            raise ValueError(f"{self.name(stem, member)}: damaged: its checksum is another")
        return data


@dataclass(frozen=True)
class PartFiles:
    """Images spread over folders and archives.

    Attributes:
        root: folder of the parts, named where an image is in none of them.
        parts: the folders and archives.
        stems: (N,) Arrow strings: file names without suffix.
        part_of: (N,) int32 index into `parts`, −1 where no part has the image.
        member: (N,) int64 index into the archive.
    """

    root: Path
    parts: tuple[Folder | Archive, ...]
    stems: pa.LargeStringArray
    part_of: np.ndarray
    member: np.ndarray

    def name(self, row: int) -> str:
        """The path of the file, or of the archive and the name in it."""
        stem: str = self.stems[row].as_py()
        part = int(self.part_of[row])
        return f"{self.root}/{stem}" if part < 0 else self.parts[part].name(stem, int(self.member[row]))

    def read(self, row: int) -> bytes:
        """The bytes, out of the part that has them.

        Raises:
            FileNotFoundError: no part has the image.
            ValueError: its archive is damaged.
            OSError: the part cannot be read.
        """
        part = int(self.part_of[row])
        if part < 0:
            raise FileNotFoundError(f"{self.name(row)}: in no folder and no archive there")
        return self.parts[part].read(self.stems[row].as_py(), int(self.member[row]))

    def present(self) -> np.ndarray:
        """Whether some part lists each image."""
        return self.part_of >= 0

    def take(self, rows: np.ndarray) -> PartFiles:
        """Some rows, in their order."""
        stems = self.stems.take(pa.array(rows))
        return PartFiles(self.root, self.parts, stems, self.part_of[rows], self.member[rows])


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


class _Handles:
    """Open archives of this process, the least recently used closed first."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, start: int, size: int) -> bytes:
        descriptor = self._descriptor(path)
        pieces = []
        while size:
            piece = os.pread(descriptor, size, start)
            if not piece:
                raise OSError(f"{path}: ends before a member does: the archive is cut off")
            pieces.append(piece)
            start, size = start + len(piece), size - len(piece)
        return b"".join(pieces)

    def _descriptor(self, path: Path) -> int:
        if self._process != os.getpid():  # forked: the parent's descriptors stay the parent's to close
            self._process, self._open = os.getpid(), OrderedDict()
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = os.open(path, os.O_RDONLY)
            if len(self._open) > _OPEN_ARCHIVES:
                os.close(self._open.popitem(last=False)[1])
        return self._open[path]


_HANDLES = _Handles()


def find_in_parts(
    root: Path, stems: pa.LargeStringArray, parts: list[tuple[Folder | Archive, pa.LargeStringArray]]
) -> PartFiles:
    """Finds each row's image in the first part that has it.

    Args:
        root: folder of the parts.
        stems: (N,) names looked for.
        parts: each part with the names in it, for an archive in the order of its members.
    """
    inside: list[Any] = [names for _, names in parts]
    names = pa.chunked_array(inside, pa.large_string())
    found = pc.fill_null(pc.index_in(stems, value_set=names.combine_chunks()), -1).to_numpy()
    ends = np.cumsum([len(names) for names in inside], dtype=np.int64)
    part_of = np.searchsorted(ends, found, side="right").astype(np.int32)
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    member = found.astype(np.int64) - starts[part_of]
    part_of[found < 0] = -1
    return PartFiles(root, tuple(part for part, _ in parts), stems, part_of, member)
