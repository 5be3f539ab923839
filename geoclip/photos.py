"""Lists of geotagged photos: who they are, where they were taken, where their bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geoclip.coordinates import check_latlon
from geoclip.image_files import ImageFiles

# administrative areas from the largest to the smallest, where a data set names them
AREAS = ("country", "region", "sub_region", "city")


@dataclass(frozen=True)
class PhotoList:
    """N geotagged photos; Arrow and NumPy columns, so that millions of rows cost little.

    Attributes:
        ids: (N,) unique Arrow strings.
        latlon: (N, 2) float64 latitudes and longitudes in degrees.
        images: the N image files.
        areas: (N,) dictionary-encoded strings by name, some of `AREAS`; null where unknown.
        dataset: name of the layout, such as "osv5m", where it is one.
        split: "train" or "test" where the data set says so.
    """

    ids: pa.LargeStringArray
    latlon: np.ndarray
    images: ImageFiles
    areas: Mapping[str, pa.DictionaryArray] = field(default_factory=dict)
    dataset: str | None = None
    split: str | None = None

    def __len__(self) -> int:
        return len(self.latlon)

    def take(self, rows: np.ndarray) -> PhotoList:
        """Some rows, in their order."""
        index = pa.array(rows)
        areas = {name: column.take(index) for name, column in self.areas.items()}
        ids, images = self.ids.take(index), self.images.take(rows)
        return PhotoList(ids, self.latlon[rows], images, areas, self.dataset, self.split)


def check_photos(photos: PhotoList, source: str) -> PhotoList:
    """Hands a list on that can be worked with, its longitudes within ±180.

    Args:
        photos: the list.
        source: what messages call the place it came from, usually a file.

    Raises:
        ValueError: no rows, an empty id, a bad coordinate, or ids that are not unique. Rows are named,
            counted from 1.
    """
    if not len(photos):
        raise ValueError(f"{source} has no rows")
    check_filled(photos.ids, "id", source)
    photos = replace(photos, latlon=check_latlon(photos.latlon, source))
    if not _distinct(photos.ids):
        counts = pc.value_counts(photos.ids)
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise ValueError(
            f"{source}: id {first['values']!r} stands in {first['counts']} rows, wanted unique ids"
        )
    return photos


def _distinct(ids: pa.LargeStringArray) -> bool:
    try:  # numbers are sorted in a tenth of the memory that a hash of strings takes
        numbers = ids.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        numbers = np.zeros(0, np.int64)
    if len(np.unique(numbers)) == len(ids):
        return True
    return bool(pc.count_distinct(ids).as_py() == len(ids))  # 7 and 007 are two ids


def check_filled(column: pa.Array, name: str, source: str) -> None:
    """Refuses a column of strings with an empty or missing one.

    Raises:
        ValueError: the row is named, counted from 1.
    """
    empty = pc.fill_null(pc.equal(column, ""), True)
    if pc.any(empty).as_py():
        raise ValueError(f"{source}: row {pc.index(empty, True).as_py() + 1} has an empty {name}")
