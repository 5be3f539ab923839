"""Small generated data sets in the layouts of the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

SATELLITE_SIZE, PANORAMA_SIZE = (24, 24), (48, 16)


def draw(path: Path, size: tuple[int, int], place: int) -> None:
    """An image whose colours depend on the place."""
    rng = np.random.default_rng(place)
    colours = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR).save(path)


def write_cvusa(root: Path, train: int = 40, val: int = 12) -> Path:
    numbers = np.random.default_rng(0).permutation(train + val) + 1
    rng = np.random.default_rng(1)
    latlon = np.column_stack([rng.uniform(30, 45, train + val), rng.uniform(-120, -75, train + val)])
    (root / "splits").mkdir(parents=True)
    (root / "split_locations").mkdir()
    lines = [f"{a + 0.01},{b},{a},{b},7" for a, b in latlon]
    (root / "split_locations" / "all.csv").write_text("\n".join(lines) + "\n")
    for split, some in (("train", numbers[:train]), ("val", numbers[train:])):
        rows = []
        for number in some.tolist():
            satellite, ground = f"bingmap/19/{number:07}.jpg", f"streetview/panos/{number:07}.jpg"
            draw(root / satellite, SATELLITE_SIZE, number)
            draw(root / ground, PANORAMA_SIZE, number)
            rows.append(f"{satellite},{ground},streetview/annotations/{number:07}.png")
        (root / "splits" / f"{split}-19zl.csv").write_text("\n".join(rows) + "\n")
    return root


def write_cvact(root: Path, train: int = 20, val: int = 8, test: int = 5) -> Path:
    ids = [f"pano_{i}x" for i in range(train + val)]
    rng = np.random.default_rng(2)
    utm = np.column_stack([rng.uniform(683e3, 704e3, len(ids)), rng.uniform(6.07e6, 6.1e6, len(ids))])
    rows = np.arange(len(ids)) + 1  # MATLAB counts from one

    def split(some):
        table = np.zeros((1, 1), dtype=[("name", "O"), ("ind", "O")])
        table["name"][0, 0], table["ind"][0, 0] = "split", some[:, None]
        return table

    root.mkdir(parents=True)
    scipy.io.savemat(
        root / "ACT_data.mat",
        {
            "panoIds": np.array(ids),
            "utm": utm,
            "trainSet": split(rows[:train]),
            "valSet": split(rows[train:]),
        },
    )
    for folder, names in (("ANU_data_small", ids), ("ANU_data_test", [f"t{i}" for i in range(test)])):
        for place, name in enumerate(names):
            draw(root / folder / "streetview" / f"{name}_grdView.jpg", PANORAMA_SIZE, place)
            draw(root / folder / "satview_polish" / f"{name}_satView_polish.jpg", SATELLITE_SIZE, place)
    return root


def write_vigor(root: Path, satellites: int = 12, *, published: bool = True) -> Path:
    """Every city has `satellites` images; panoramas 0 … 2·satellites−1, the last satellite has none."""
    for city_number, city in enumerate(("Chicago", "NewYork", "SanFrancisco", "Seattle")):
        names = [f"satellite_{40 + city_number + i / 100}_{-80 - i / 50}.png" for i in range(satellites)]
        splits = root / "splits" / city
        splits.mkdir(parents=True)
        (splits / "satellite_list.txt").write_text("\n".join(names) + "\n")
        lines = []
        for pano in range(2 * satellites):
            positive = pano % (satellites - 1)
            chosen = [(positive + k) % satellites for k in range(4)]
            offsets = " ".join(f"{names[c]} {k}.5 -{k}.25" for k, c in enumerate(chosen))
            lines.append(f"p{pano},41.0,-87.0,.jpg {offsets}")
            folder = root / city / "panorama" if published else root / "ground" / city
            draw(folder / f"p{pano},41.0,-87.0,.jpg", PANORAMA_SIZE, 100 * city_number + positive)
        (splits / "pano_label_balanced.txt").write_text("\n".join(lines) + "\n")
        (splits / "same_area_balanced_train.txt").write_text("\n".join(lines[:-6]) + "\n")
        (splits / "same_area_balanced_test.txt").write_text("\n".join(lines[-6:]) + "\n")
        for i, name in enumerate(names):
            folder = root / city / "satellite" if published else root / "satellite" / city
            draw(folder / name, SATELLITE_SIZE, 100 * city_number + i)
    return root


def write_university1652(root: Path, train: int = 7, test: int = 5, distractors: int = 3) -> Path:
    def building(folder, number, images):
        for k in range(images):
            draw(root / folder / f"{number:04}" / f"image-{k:02}.jpeg", SATELLITE_SIZE, number)

    for number in range(train):
        building("train/drone", number, 4)
        building("train/satellite", number, 1)
    building("train/satellite", 900, 1)  # no drone has seen it
    for number in range(100, 100 + test):
        building("test/query_drone", number, 3)
        building("test/query_satellite", number, 1)
    for number in range(100, 100 + test + distractors):
        building("test/gallery_satellite", number, 1)
        building("test/gallery_drone", number, 3)
    return root
