"""OpenStreetView-5M as its authors publish it on Hugging Face, `osv5m/osv5m`.

    train.csv, test.csv          id, latitude, longitude, country, region, sub-region, city, unique_…
    images/train/NN.zip          00 to 97, each with its photos as NN/<id>.jpg
    images/test/NN.zip           00 to 04
    images/{train,test}/NN/      the same, where the zips were extracted

The tables do not say which part a photo is in. Areas are the `unique_` columns, which tell regions of one
name in two countries apart; the accuracies of the paper (Astruc et al., CVPR 2024) are over them.
"""

from __future__ import annotations

from pathlib import Path

from geoclip.datasets.image_parts import image_parts
from geoclip.datasets.table import COLUMNS, OPTIONAL, areas_of, latlon_of, read_columns
from geoclip.photos import PhotoList, check_photos

SPLITS = ("train", "test")
_COLUMNS = {**OPTIONAL, "latitude": COLUMNS["latitude"], "longitude": COLUMNS["longitude"]}


def is_osv5m(folder: Path) -> bool:
    """Whether the folder has this layout."""
    return any((folder / f"{split}.csv").is_file() for split in SPLITS) and (folder / "images").is_dir()


def read_osv5m(folder: Path, split: str = "train") -> PhotoList:
    """Reads a split; memory is that of the ids, the positions and the codes of the areas.

    Args:
        folder: of train.csv and images/.
        split: "train" or "test".

    Raises:
        FileNotFoundError: the table or the images of that split are missing.
        ValueError: a damaged table or zip, or as `check_photos` says.
    """
    if split not in SPLITS:
        raise ValueError(f"split: wanted train or test, got {split!r}")
    table, images = folder / f"{split}.csv", folder / "images" / split
    for path in (table, images):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there; geoclip download osv5m fetches it")
    columns = read_columns(table, _COLUMNS, needed=dict.fromkeys(("id", "latitude", "longitude")))
    files = image_parts(images, columns["id"])
    photos = PhotoList(columns["id"], latlon_of(columns), files, areas_of(columns), "osv5m", split)
    return check_photos(photos, str(table))
