"""VIGOR (Zhu et al., 2021): 105,214 panoramas and 90,618 satellite images of four American cities.

splits/<city>/satellite_list.txt            names of all satellite images
splits/<city>/same_area_balanced_{train,test}.txt, pano_label_balanced.txt
                                            panorama, then four times: satellite, offset, offset in pixels;
                                            the first is the positive, the other three are semi-positives
<city>/panorama, <city>/satellite           as published; or ground/<city>, satellite/<city>
satellite_<latitude>_<longitude>.png        names hold the coordinates
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geoclip.coordinates import check_latlon
from geoclip.crossview.views import CrossViews, distinct, existing

CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")
_CROSS_AREA = {"train": ("NewYork", "Seattle"), "test": ("Chicago", "SanFrancisco")}
_SATELLITE_COLUMNS = (1, 4, 7, 10)


def read_vigor(root: str | Path, split: str, *, area: str = "same") -> CrossViews:
    """Read a split. Of "train", the references are the satellite images that are some panorama's positive.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        area: "same" (all four cities in both splits) or "cross" (trained in New York and Seattle, tested in
            Chicago and San Francisco).

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: another split or area, a satellite image or panorama that comes twice, a line of another
            form, or a satellite image that no list has.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: VIGOR has train and test, got {split!r}")
    if area not in ("same", "cross"):
        raise ValueError(f"area: wanted 'same' or 'cross', got {area!r}")
    root = Path(root)
    cities = CITIES if area == "same" else _CROSS_AREA[split]
    list_name = f"same_area_balanced_{split}.txt" if area == "same" else "pano_label_balanced.txt"
    query_files: list[Path] = []
    reference_files: list[Path] = []
    positives: list[list[int]] = []
    for city in cities:
        ground, satellite = _folders(root, city)
        source = existing(root / "splits" / city / "satellite_list.txt")
        names = distinct(source.read_text().split(), source)
        number = {name: len(reference_files) + i for i, name in enumerate(names)}
        reference_files += [satellite / name for name in names]
        source = existing(root / "splits" / city / list_name)
        lines = [line.split() for line in source.read_text().splitlines() if line.strip()]
        distinct([line[0] for line in lines], source)
        for line in lines:
            try:
                positives.append([number[line[column]] for column in _SATELLITE_COLUMNS])
            except IndexError:
                raise ValueError(
                    f"{source}: wanted a panorama and four satellite images, got {line}"
                ) from None
            except KeyError as error:
                raise ValueError(f"{source}: {error} is not in satellite_list.txt") from None
            query_files.append(ground / line[0])
    if not positives:
        raise ValueError(f"{root}: no panorama in {list_name}")
    relation = np.array(positives, dtype=np.int64)
    labels, semi_positives = relation[:, 0], relation[:, 1:]
    kept = np.unique(labels) if split == "train" else np.arange(len(reference_files))
    new_row = np.full(len(reference_files), -1, dtype=np.int64)
    new_row[kept] = np.arange(len(kept))
    files = [reference_files[row] for row in kept.tolist()]
    return CrossViews(
        query_files=query_files,
        reference_files=files,
        query_labels=labels,
        reference_labels=kept,
        semi_positives=new_row[semi_positives],
        reference_latlon=_latlon(files),
    )


def _folders(root: Path, city: str) -> tuple[Path, Path]:
    """Of panoramas and of satellite images."""
    if (root / "ground" / city).is_dir():
        return root / "ground" / city, root / "satellite" / city
    return root / city / "panorama", root / city / "satellite"


def _latlon(files: list[Path]) -> np.ndarray:
    latlon = np.empty((len(files), 2))
    for row, file in enumerate(files):
        parts = file.stem.split("_")
        try:
            latlon[row] = float(parts[-2]), float(parts[-1])
        except (IndexError, ValueError):
            raise ValueError(f"{file}: wanted satellite_<latitude>_<longitude>, got {file.stem}") from None
    check_latlon(latlon, "VIGOR's satellite images")
    return latlon
