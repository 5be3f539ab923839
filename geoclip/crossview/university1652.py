"""University-1652 (Zheng et al., 2020): 1,652 buildings seen by a drone and by a satellite. No coordinates.

train/{drone,satellite}/<building>/*                        54 and 1 images a building
test/{query_drone,gallery_satellite}/<building>/*           drone to satellite, with distractors
test/{query_satellite,gallery_drone}/<building>/*           satellite to drone
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geoclip.crossview.views import CrossViews, existing

_IMAGES = {".jpg", ".jpeg", ".png", ".webp"}
_FOLDERS = {
    ("train", "drone"): ("train/drone", "train/satellite"),
    ("test", "drone"): ("test/query_drone", "test/gallery_satellite"),
    ("test", "satellite"): ("test/query_satellite", "test/gallery_drone"),
}


def read_university1652(root: str | Path, split: str, *, query: str = "drone") -> CrossViews:
    """Read a split. Buildings of the gallery that no query shows are distractors and stay in it.

    Args:
        root: folder of the data set.
        split: "train" or "test".
        query: "drone" (drone image to satellite image) or, of "test", "satellite".

    Raises:
        FileNotFoundError: a folder is missing or has no images.
        ValueError: another split or view, or a building whose name is no number.
    """
    if (split, query) not in _FOLDERS:
        raise ValueError(
            "split, query: University-1652 has train, drone; test, drone; and test, satellite; "
            f"got {split}, {query}"
        )
    queries, references = (_images(existing(Path(root) / folder)) for folder in _FOLDERS[split, query])
    if split == "train":
        both = {label for label, _ in queries} & {label for label, _ in references}
        queries, references = ([(n, f) for n, f in images if n in both] for images in (queries, references))
    return CrossViews(
        query_files=[file for _, file in queries],
        reference_files=[file for _, file in references],
        query_labels=np.array([label for label, _ in queries], dtype=np.int64),
        reference_labels=np.array([label for label, _ in references], dtype=np.int64),
    )


def _images(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for building in sorted(path for path in folder.iterdir() if path.is_dir()):
        if not building.name.isdigit():
            raise ValueError(f"{building}: wanted a folder named by a building's number")
        files = sorted(file for file in building.iterdir() if file.suffix.lower() in _IMAGES)
        found += [(int(building.name), file) for file in files]
    if not found:
        raise FileNotFoundError(f"{folder}: no images of buildings")
    return found
