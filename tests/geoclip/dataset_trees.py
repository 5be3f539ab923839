"""Small data sets of rendered photos in the layouts they are published in."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from .rendered_photos import random_latlon, render

# train.csv's header on Hugging Face
COLUMNS_OF_OSV5M = (
    "id latitude longitude thumb_original_url country sequence captured_at lon_bin lat_bin cell region "
    "sub-region city land_cover road_index drive_side climate soil dist_sea quadtree_10_5000 "
    "quadtree_10_25000 quadtree_10_1000 quadtree_10_50000 quadtree_10_12500 quadtree_10_500 quadtree_10_2500 "
    "unique_region unique_sub-region unique_city unique_country creator_username creator_id"
)
OSV5M_HEADER = COLUMNS_OF_OSV5M.split()
PLACES365_HEADER = ["IMG_ID", "AUTHOR", "LAT", "LON", "S3_Label", "S16_Label", "S365_Label", "Prob_indoor"]


def jpeg(latlon, size=40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(np.asarray(latlon), size)).save(file, "JPEG", quality=92)
    return file.getvalue()


def osv5m_ids(count: int) -> list[str]:
    return [str(10**14 + 7919 * i**2) for i in range(count)]


def write_osv5m(folder: Path, count: int, split="train", *, parts=3, zipped=(0, 1), seed=0) -> np.ndarray:
    """Writes a split and returns its places; photo i is in part i % parts, a zip or a folder.

    Every photo's country is its half of the Earth; every fifth city is missing, as there.
    """
    latlon = random_latlon(count, seed)
    images = folder / "images" / split
    images.mkdir(parents=True)
    ids = osv5m_ids(count)
    with open(folder / f"{split}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, OSV5M_HEADER, restval="")
        writer.writeheader()
        for i, (latitude, longitude) in enumerate(latlon):
            row = {
                "id": ids[i],
                "latitude": latitude,
                "longitude": longitude,
                "cell": "(0, 8)",
                "country": "N" if latitude > 0 else "S",
                "region": "Coast",
                "unique_country": "N" if latitude > 0 else "S",
                "unique_region": "Coast_N" if latitude > 0 else "Coast_S",
                "unique_sub-region": "",
                "unique_city": "" if i % 5 == 0 else f"City {i % 7}_NaN_Coast",
                "creator_username": 'He said "hi", twice',
            }
            writer.writerow(row)
    for part in range(parts):
        inside = {f"{part:02d}/{ids[i]}.jpg": jpeg(latlon[i]) for i in range(part, count, parts)}
        if part in zipped:
            with zipfile.ZipFile(images / f"{part:02d}.zip", "w") as archive:
                archive.writestr(f"{part:02d}/", b"")
                for number, (name, content) in enumerate(inside.items()):
                    archive.writestr(name, content, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][number % 2])
        else:
            (images / f"{part:02d}").mkdir()
            for name, content in inside.items():
                (images / name).write_bytes(content)
    return latlon


def write_places365(file: Path, names: list[str], latlon: np.ndarray, header=PLACES365_HEADER) -> None:
    """Writes a table as GeoEstimation does; its values stand in the order AUTHOR, latitude, longitude."""
    lines = [",".join(header)]
    lines += [
        f"{name},123@N00,{latitude},{longitude},2,12,353,0.27"
        for name, (latitude, longitude) in zip(names, latlon, strict=True)
    ]
    file.write_text("\n".join(lines) + "\n")
