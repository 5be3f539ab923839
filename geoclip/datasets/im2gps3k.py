"""Im2GPS3k, the 2,997 photos of Vo et al., ICCV 2017, that most papers are tested on.

    im2gps3k_places365.csv       IMG_ID, AUTHOR, LAT, LON, ... (GeoEstimation's meta/); IMG_ID: file name
    im2gps3ktest/<IMG_ID>        or images/im2gps3k/, images/, or im2gps3ktest.zip as published

The table's first release names its columns LON, LAT while holding latitude, longitude.
"""

from __future__ import annotations

from pathlib import Path

from geoclip.datasets.flickr import read_flickr
from geoclip.photos import PhotoList

TABLES = ("im2gps3k_places365.csv", "im2gps3k.csv")


def read_im2gps3k(folder: Path) -> PhotoList:
    """Reads Im2GPS3k; raises as `read_flickr` does."""
    folders = ("im2gps3ktest", "images/im2gps3k", "im2gps3k", "images", ".")
    return read_flickr(folder, tables=TABLES, image_folders=folders, dataset="im2gps3k", split="test")
