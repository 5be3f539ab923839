"""CVUSA (Workman et al., 2015; Zhai et al., 2017): 35,532 and 8,884 panoramas and satellite images in pairs.

splits/{train,val}-19zl.csv     satellite path, panorama path, annotation path; no header
split_locations/all.csv         line i belongs to image number i: satellite and panorama latitude, longitude
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoclip.coordinates import check_latlon
from geoclip.crossview.views import CrossViews, distinct, existing


def read_cvusa(root: str | Path, split: str) -> CrossViews:
    """Read a split; without `split_locations` there are no coordinates.

    Args:
        root: folder of the data set.
        split: "train" or "val".

    Raises:
        FileNotFoundError: there is no such folder or no list of the split.
        ValueError: another split, an image number that comes twice, a line or coordinates that are none.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split: CVUSA has train and val, got {split!r}")
    root = Path(root)
    source = existing(root / "splits" / f"{split}-19zl.csv")
    with open(source, newline="") as file:
        lines = [line for line in csv.reader(file) if line]
    short = next((line for line in lines if len(line) < 2), None)
    if short is not None or not lines:
        raise ValueError(f"{source}: wanted lines of satellite, panorama, …; got {short}")
    numbers = [Path(line[0]).stem for line in lines]
    if not all(number.isdigit() for number in numbers):
        raise ValueError(f"{source}: wanted satellite images named by their number, got {lines[0][0]}")
    labels = np.array([int(number) for number in distinct(numbers, source)], dtype=np.int64)
    locations = root / "split_locations" / "all.csv"
    return CrossViews(
        query_files=[root / line[1] for line in lines],
        reference_files=[root / line[0] for line in lines],
        query_labels=labels,
        reference_labels=labels,
        reference_latlon=_panorama_latlon(locations, labels) if locations.exists() else None,
    )


def _panorama_latlon(source: Path, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    try:
        table = np.loadtxt(source, delimiter=",", usecols=(2, 3), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{source} is no table of coordinates: {error}") from error
    if numbers.min() < 1 or numbers.max() > len(table):
        raise ValueError(f"{source}: wanted a line for image {numbers.max()}, got {len(table)} lines")
    latlon: NDArray[np.float64] = table[numbers - 1]
    check_latlon(latlon, str(source))
    return latlon
