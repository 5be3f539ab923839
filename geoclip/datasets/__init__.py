"""Published data sets by their own layouts, and anybody's photos: `read_photos` reads them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from geoclip.datasets import gws15k as gws15k_layout
from geoclip.datasets import im2gps3k, mp16, yfcc
from geoclip.datasets.exif_folder import read_exif_folder
from geoclip.datasets.osv5m import is_osv5m, read_osv5m
from geoclip.datasets.table import read_table
from geoclip.datasets.webdataset import read_webdataset
from geoclip.photos import PhotoList

# layouts that a folder is known by: one of these tables is in it
_FLICKR: dict[str, tuple[tuple[str, ...], Callable[[Path], PhotoList]]] = {
    "mp16": (mp16.TABLES, mp16.read_mp16),
    "im2gps3k": (im2gps3k.TABLES, im2gps3k.read_im2gps3k),
    "yfcc26k": (yfcc.TABLES_26K, yfcc.read_yfcc26k),
    "yfcc4k": (yfcc.TABLES_4K, yfcc.read_yfcc4k),
    "gws15k": (gws15k_layout.TABLES, gws15k_layout.read_gws15k),
}
LAYOUTS = ("osv5m", *_FLICKR, "webdataset", "table", "folder")


def read_photos(
    source: str | Path,
    *,
    layout: str | None = None,
    split: str | None = None,
    image_root: str | Path | None = None,
) -> PhotoList:
    """Reads a list of photos.

    Args:
        source: a .csv or .parquet file (see `read_table`), a folder of a data set, a folder of JPEGs with a
            GPS position, or WebDataset shards.
        layout: one of `LAYOUTS`; None tells it from what is there.
        split: "train" or "test". OSV5M has both, train by default; elsewhere it is what the list says it is.
        image_root: folder that a table's relative paths start from; by default the table's own.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: an unknown layout or split, or the list is none that can be worked with; the message names
            the file and the row, counted from 1 without the header.
    """
    source = Path(source)
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout: wanted one of {', '.join(LAYOUTS)}, got {layout!r}")
    if split not in (None, "train", "test"):
        raise ValueError(f"split: wanted train or test, got {split!r}")
    layout = layout or _layout_of(source)
    if image_root is not None and layout != "table":
        raise ValueError(f"image_root is {image_root}, but {source} is read as {layout} and needs none")
    if layout == "osv5m":
        return read_osv5m(source, split or "train")
    if layout in _FLICKR:
        photos = _FLICKR[layout][1](source)
    elif layout == "webdataset":
        photos = read_webdataset(source)
    elif layout == "folder":
        photos = read_exif_folder(source)
    else:
        photos = read_table(source, None if image_root is None else Path(image_root))
    return replace(photos, split=split or photos.split)


def _layout_of(source: Path) -> str:
    if source.suffix.lower() == ".tar":
        return "webdataset"
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not source.is_dir():
        return "table"
    if is_osv5m(source):
        return "osv5m"
    for layout, (tables, _) in _FLICKR.items():
        if any((source / table).is_file() for table in tables):
            return layout
    return "webdataset" if any(source.glob("*.tar")) else "folder"
