"""GWS15k, Google World Streets: 14,955 street views drawn evenly over the land (Clark et al., CVPR 2023).

Its photos may not be passed on, so there is no published archive; who has fetched them has GeoCLIP's table:

    gws15k.csv                   IMG_FILE, LAT, LON
    images/<IMG_FILE>            or gws15k/, images/gws15k/, or a zip of one of these names
"""

from __future__ import annotations

from pathlib import Path

from geoclip.datasets.flickr import read_flickr
from geoclip.photos import PhotoList

TABLES = ("gws15k.csv", "GWS15k.csv", "gws15k_places365.csv")


def read_gws15k(folder: Path) -> PhotoList:
    """Reads GWS15k; raises as `read_flickr` does."""
    folders = ("images/gws15k", "gws15k", "GWS15k", "images", ".")
    return read_flickr(folder, tables=TABLES, image_folders=folders, dataset="gws15k", split="test")
