"""What the Flickr benchmarks share: GeoEstimation's tables, with IMG_ID, LAT, LON, beside a folder of images.

Mueller-Budack et al., ECCV 2018 (github.com/TIBHannover/GeoEstimation), publish `<name>_places365.csv`;
GeoCLIP's own loader reads the same tables with the image under IMG_FILE.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geoclip.datasets.image_parts import zipped_images
from geoclip.datasets.table import COLUMNS, OPTIONAL, areas_of, join_paths, latlon_of, read_columns
from geoclip.image_files import ImageFiles, PathFiles
from geoclip.photos import PhotoList, check_filled, check_photos

_PATH = ("img_id", *COLUMNS["path"])


def read_flickr(
    folder: Path, *, tables: tuple[str, ...], image_folders: tuple[str, ...], dataset: str, split: str
) -> PhotoList:
    """Reads the first of a data set's tables that is there, with the first of its image folders or zips.

    Ids are IMG_ID as written. Where the whole table fits only with latitude and longitude exchanged, as in
    the Im2GPS3k table that GeoEstimation's first releases carry, they are exchanged, with a warning.

    Args:
        folder: the data set.
        tables: names its table may have.
        image_folders: names below `folder` that its images may be under; zips of these names are read in
            place.
        dataset: name of the layout.
        split: what the data set is used as, "train" or "test".

    Raises:
        FileNotFoundError: no such table or images.
        ValueError: as `check_photos` says.
    """
    table = next((folder / name for name in tables if (folder / name).is_file()), None)
    if table is None:
        raise FileNotFoundError(f"{folder}: holds none of {', '.join(tables)}")
    columns = read_columns(table, {**COLUMNS, **OPTIONAL, "path": _PATH}, needed=COLUMNS)
    names = columns["path"]
    check_filled(names, "path", str(table))
    latlon = latlon_of(columns)
    if _fits_only_exchanged(latlon):
        warnings.warn(
            f"{table}: its columns of latitude and longitude are exchanged; read the other way round",
            stacklevel=3,
        )
        latlon = latlon[:, ::-1].copy()
    images = _images(folder, names, image_folders)
    photos = PhotoList(names, latlon, images, areas_of(columns), dataset, split)
    return check_photos(photos, str(table))


def _fits_only_exchanged(latlon: np.ndarray) -> bool:
    return bool((np.abs(latlon[:, 0]) > 90).any() and (np.abs(latlon[:, 1]) <= 90).all())


def _images(folder: Path, names: pa.LargeStringArray, image_folders: tuple[str, ...]) -> ImageFiles:
    bare = pc.invert(pc.match_substring_regex(names, r"\.\w{3,4}$"))
    suffix, nothing = (pa.scalar(text, pa.large_string()) for text in (".jpg", ""))
    names = pc.if_else(bare, pc.binary_join_element_wise(names, suffix, nothing), names)
    for name in image_folders:
        if (folder / name).is_dir():
            return PathFiles(join_paths(folder / name, names))
        if (folder / f"{name}.zip").is_file():
            return zipped_images(folder / f"{name}.zip", names)
    raise FileNotFoundError(
        f"{folder}: holds no folder or zip of images, wanted one of {', '.join(image_folders)}"
    )
