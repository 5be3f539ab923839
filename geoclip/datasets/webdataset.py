"""WebDataset shards: tar files in which a photo is `<key>.jpg` and its place the `<key>.json` beside it.

The key is the path up to the first dot of the file name, as in the `webdataset` package. The JSON holds
latitude and longitude under their usual names, and optionally id, country, region, sub_region, city. Shards
stay as they are: their headers and the JSON are read once, photos later by position.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from geoclip.datasets.table import COLUMNS, OPTIONAL
from geoclip.image_files import Archive, PartFiles
from geoclip.photos import AREAS, PhotoList, check_photos

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_NAMES = {**OPTIONAL, "latitude": COLUMNS["latitude"], "longitude": COLUMNS["longitude"]}


def read_webdataset(source: Path) -> PhotoList:
    """Reads the list of a folder of .tar shards, of one, or of a range such as `train-{0000..0127}.tar`.

    An id is the JSON's, else `<shard>/<key>`.

    Raises:
        FileNotFoundError: there is no such shard.
        ValueError: a shard is no tar or cut off, a JSON is damaged or without a position, a photo without
            JSON, or as `check_photos` says.
    """
    shards = _shards(source)
    stems: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in _NAMES}
    parts: list[Archive] = []
    part_of: list[int] = []
    members: list[int] = []
    for number, shard in enumerate(shards):
        starts: list[int] = []
        sizes: list[int] = []
        for key, member, fields in _samples(shard):
            stems.append(key)
            part_of.append(number)
            members.append(len(starts))
            starts.append(member.offset_data)
            sizes.append(member.size)
            place = _place(fields, f"{shard}/{key}.json")
            for name, values in columns.items():
                values.append(place.get(name))
            if place.get("id") is None:
                columns["id"][-1] = f"{shard.stem}/{key}"
        parts.append(Archive(shard, np.array(starts, np.int64), np.array(sizes, np.int64)))
    part_numbers, member_numbers = np.array(part_of, np.int32), np.array(members, np.int64)
    names = pa.array(stems, pa.large_string())
    images = PartFiles(source, tuple(parts), names, part_numbers, member_numbers)
    latlon = np.array([columns["latitude"], columns["longitude"]], np.float64).T
    areas = {
        name: pa.array(columns[name], pa.string()).dictionary_encode()
        for name in AREAS
        if any(value is not None for value in columns[name])
    }
    ids = pa.array([str(value) for value in columns["id"]], pa.large_string())
    return check_photos(PhotoList(ids, latlon, images, areas, "webdataset"), str(source))


def _shards(source: Path) -> list[Path]:
    if source.is_dir():
        shards = sorted(source.glob("*.tar"))
        if not shards:
            raise FileNotFoundError(f"{source} holds no .tar shard")
        return shards
    braces = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(source))
    if braces:
        before, first, last, after = braces.groups()
        numbers = range(int(first), int(last) + 1)
        shards = [Path(f"{before}{number:0{len(first)}d}{after}") for number in numbers]
    else:
        shards = [source]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: no such shard")
    return shards


def _samples(shard: Path) -> list[tuple[str, tarfile.TarInfo, bytes]]:
    """Each photo's key, image member and JSON, in the order of the images."""
    images: dict[str, tarfile.TarInfo] = {}
    fields: dict[str, bytes] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + member.size
                folder, name = member.name.rpartition("/")[::2]
                stem, dot, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isfile() or not stem:
                    continue
                if dot + extension.lower() in _IMAGES:
                    images[key] = member
                elif extension.lower() == "json":
                    content = tar.extractfile(member)
                    assert content is not None  # a plain file's never is
                    fields[key] = content.read()
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not a whole tar archive: {error}") from error
    if end > shard.stat().st_size:
        raise ValueError(f"{shard}: not a whole tar archive: cut off in its last member")
    for key in images:
        if key not in fields:
            raise ValueError(f"{shard}: photo {key} has no {key}.json beside it")
    return [(key, member, fields[key]) for key, member in images.items()]


def _place(content: bytes, source: str) -> dict[str, Any]:
    """Our fields of a photo's JSON."""
    try:
        found = {str(name).lower(): value for name, value in dict(json.loads(content)).items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: damaged: {error}") from error
    place = {
        name: next((found[alias] for alias in aliases if found.get(alias) is not None), None)
        for name, aliases in _NAMES.items()
    }
    try:
        place.update({name: float(place[name]) for name in ("latitude", "longitude")})  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{source}: wanted latitude and longitude, it has {', '.join(found)}") from None
    place.update({name: str(place[name]) for name in AREAS if place[name] is not None})
    return place
