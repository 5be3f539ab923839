"""MP-16, the 4.7 million Flickr photos of MediaEval's Placing Task 2016 that GeoCLIP is trained on.

    mp16_places365.csv           IMG_ID (34/8d/9055806529.jpg), AUTHOR, LAT, LON, ... (GeoEstimation's
    release) MP16_Pro_places365.csv       the same with country, state, city (Jia et al., 2024)
    mp16_urls.csv                where the photos were: without a header, and not read
    images/mp16/34/8d/….jpg      or mp16/, images/, or a zip of one of these names

Some of the photos have left Flickr since: see `geoclip embed --only-present`.
"""

from __future__ import annotations

from pathlib import Path

from geoclip.datasets.flickr import read_flickr
from geoclip.photos import PhotoList

TABLES = ("mp16_places365.csv", "MP16_Pro_filtered.csv", "MP16_Pro_places365.csv", "mp16.csv")


def read_mp16(folder: Path) -> PhotoList:
    """Reads MP-16; raises as `read_flickr` does."""
    folders = ("images/mp16", "mp16", "images", ".")
    return read_flickr(folder, tables=TABLES, image_folders=folders, dataset="mp16", split="train")
