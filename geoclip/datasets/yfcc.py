"""Test sets drawn from YFCC100M: YFCC26k (Theiner et al., WACV 2022) and YFCC4k (Vo et al., ICCV 2017).

yfcc25600_places365.csv      IMG_ID (34/8d/9055806529.jpg), LAT, LON, ...: the 25,600 photos called YFCC26k
images/yfcc25600/34/8d/….jpg or yfcc25600/, yfcc26k/, images/, or a zip of one of these names

yfcc4k_places365.csv         IMG_ID, LAT, LON, ...: 4,536 photos
yfcc4k/<IMG_ID>              or images/yfcc4k/, images/, or yfcc4k.zip as published
"""

from __future__ import annotations

from pathlib import Path

from geoclip.datasets.flickr import read_flickr
from geoclip.photos import PhotoList

TABLES_26K = ("yfcc25600_places365.csv", "yfcc26k.csv")
TABLES_4K = ("yfcc4k_places365.csv", "yfcc4k.csv")


def read_yfcc26k(folder: Path) -> PhotoList:
    """Reads YFCC26k; raises as `read_flickr` does."""
    folders = ("images/yfcc25600", "yfcc25600", "yfcc26k", "images", ".")
    return read_flickr(folder, tables=TABLES_26K, image_folders=folders, dataset="yfcc26k", split="test")


def read_yfcc4k(folder: Path) -> PhotoList:
    """Reads YFCC4k; raises as `read_flickr` does."""
    folders = ("images/yfcc4k", "yfcc4k", "images", ".")
    return read_flickr(folder, tables=TABLES_4K, image_folders=folders, dataset="yfcc4k", split="test")
