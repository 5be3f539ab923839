"""The list of a zip archive's members as columns, without a Python object per member.

`zipfile` makes about a kilobyte of objects for each of them, which is 5 GB for five million photos. Format:
PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.12 (central directory), 4.3.14, 4.3.15 (ZIP64) and 4.3.16 (its end).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from geoclip.image_files import Archive

_ENTRY = 46  # bytes of an entry before its name
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LARGEST_END = _END.size + 0xFFFF + _END64_LOCATOR.size  # with the longest comment


@dataclass(frozen=True)
class ZipDirectory:
    """M members, folders left out.

    Attributes:
        names: (M,) Arrow strings as the archive has them.
        archive: where they lie.
    """

    names: pa.LargeStringArray
    archive: Archive


def read_zip_directory(path: Path) -> ZipDirectory:
    """Reads the list at a zip's end.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no zip, is cut off, or holds encrypted members or other compressions than stored and
            deflated.
    """
    directory, entries = _central_directory(path)
    try:
        return _columns(path, np.frombuffer(directory, np.uint8), entries)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged: {error}") from None


def _central_directory(path: Path) -> tuple[bytes, int]:
    """The central directory and the number of its entries."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LARGEST_END))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < _END.size:
            raise ValueError(f"{path}: not a whole zip archive: it has no end; was its download cut off?")
        *_, entries, length, start, _ = _END.unpack_from(tail, at)
        if entries == 0xFFFF or 0xFFFFFFFF in (length, start):
            if at < _END64_LOCATOR.size or tail[at - _END64_LOCATOR.size :][:4] != b"PK\x06\x07":
                raise ValueError(f"{path}: damaged: its ZIP64 end is missing")
            _, _, at64, _ = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)
            file.seek(at64)
            end64 = file.read(_END64.size)
            if len(end64) < _END64.size or end64[:4] != b"PK\x06\x06":
                raise ValueError(f"{path}: damaged: its ZIP64 end is not where it should be")
            *_, entries, length, start = _END64.unpack(end64)
        file.seek(start)
        directory = file.read(length)
    if len(directory) < length:
        raise ValueError(f"{path}: damaged: its list of members is cut off")
    return directory, entries


def _columns(path: Path, directory: np.ndarray, entries: int) -> ZipDirectory:
    at = _entries(directory, entries)
    head = directory[at[:, None] + np.arange(_ENTRY)] if entries else np.empty((0, _ENTRY), np.uint8)

    def field(offset: int, kind: str) -> np.ndarray:
        width = np.dtype(kind).itemsize
        return np.ascontiguousarray(head[:, offset : offset + width]).view(kind)[:, 0]

    flags, method, checksums = field(8, "<u2"), field(10, "<u2"), field(16, "<u4")
    if (flags & 1).any() or not np.isin(method, (0, 8)).all():
        raise ValueError("encrypted members, or compressed otherwise than by deflate, cannot be read")
    sizes, starts = field(20, "<u4").astype(np.int64), field(42, "<u4").astype(np.int64)
    whole, lengths = field(24, "<u4"), field(28, "<u2").astype(np.int64)
    long = (sizes == 0xFFFFFFFF) | (starts == 0xFFFFFFFF) | (whole == 0xFFFFFFFF)
    for i in np.flatnonzero(long):  # only what lies beyond 4 GiB
        sizes[i], starts[i] = _zip64(directory, int(at[i]), int(sizes[i]), int(starts[i]), int(whole[i]))
    names = _strings(directory, at + _ENTRY, lengths)
    is_file = directory[at + _ENTRY + lengths - 1] != ord("/") if entries else np.empty(0, bool)
    archive = Archive(path, starts[is_file], sizes[is_file], (method == 8)[is_file], checksums[is_file])
    return ZipDirectory(names.filter(pa.array(is_file)), archive)


def _entries(directory: np.ndarray, entries: int) -> np.ndarray:
    """(entries,) int64: where each entry begins."""
    marks = [directory[i : len(directory) - 3 + i] == byte for i, byte in enumerate(b"PK\x01\x02")]
    at = np.flatnonzero(np.logical_and.reduce(marks)).astype(np.int64)
    at = at[at + _ENTRY <= len(directory)]
    ends = at + _ENTRY
    for offset in (28, 30, 32):  # lengths of name, extra field, comment
        ends = ends + directory[at + offset] + 256 * directory[at + offset + 1].astype(np.int64)
    if len(at) == entries and (entries == 0 or (at[0] == 0 and np.array_equal(ends[:-1], at[1:]))):
        return at
    # a name or an extra field holds the mark by chance: from entry to entry
    end_of = dict(zip(at.tolist(), ends.tolist(), strict=True))
    walked, here = [], 0
    for _ in range(entries):
        if here not in end_of:
            raise ValueError("its list of members is broken")
        walked.append(here)
        here = end_of[here]
    return np.array(walked, np.int64)


def _zip64(directory: np.ndarray, at: int, size: int, start: int, whole: int) -> tuple[int, int]:
    """Size in the archive and start, of an entry whose 32-bit fields are too small."""
    entry = directory[at : at + _ENTRY].tobytes()
    name, extra = struct.unpack_from("<2H", entry, 28)
    fields = directory[at + _ENTRY + name : at + _ENTRY + name + extra].tobytes()
    here = 0
    while here + 4 <= len(fields):
        kind, length = struct.unpack_from("<2H", fields, here)
        if kind == 1:
            numbers = list(struct.unpack_from(f"<{length // 8}Q", fields, here + 4))
            wanted = [value == 0xFFFFFFFF for value in (whole, size, start)]
            if len(numbers) < sum(wanted):
                break
            _, size, start = (
                numbers.pop(0) if is_long else value
                for is_long, value in zip(wanted, (whole, size, start), strict=True)
            )
            return size, start
        here += 4 + length
    raise ValueError("a member beyond 4 GiB has no ZIP64 field")


def _strings(directory: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> pa.LargeStringArray:
    """Slices of bytes as Arrow strings."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    text = pa.py_buffer(directory[positions])
    strings = pa.LargeStringArray.from_buffers(len(starts), pa.py_buffer(offsets), text)
    strings.validate(full=True)  # UTF-8, as its flag promises; other code pages are refused as damaged
    return strings
