"""A folder of JPEGs that know where they were taken, from their EXIF GPS."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image

from geoclip.coordinates import check_latlon
from geoclip.image_files import PathFiles
from geoclip.photos import PhotoList, check_photos


def read_exif_folder(folder: Path) -> PhotoList:
    """Reads the list of a folder's and its subfolders' JPEGs.

    An id is the path below the folder. JPEGs without a position are left out with a warning.

    Raises:
        ValueError: no JPEG, or none with a position.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise ValueError(f"{folder} holds no JPEG")
    latlon = np.array([_exif_latlon(file) for file in files])
    known = np.isfinite(latlon).all(axis=1)
    if not known.all():
        first = files[int(np.argmin(known))]
        message = f"{(~known).sum()} of {len(files)} JPEGs, {first} first, have no readable GPS position"
        if not known.any():
            raise ValueError(f"{folder}: {message}")
        warnings.warn(f"{folder}: {message} and are left out", stacklevel=3)
    kept = [file for file, has_position in zip(files, known, strict=True) if has_position]
    ids = pa.array([file.relative_to(folder).as_posix() for file in kept], pa.large_string())
    images = PathFiles(pa.array([str(file) for file in kept], pa.large_string()))
    return check_photos(PhotoList(ids, latlon[known], images), str(folder))


def _exif_latlon(file: Path) -> tuple[float, float]:
    """Latitude and longitude in degrees; NaN where the file has none, or none that can be."""
    try:
        with Image.open(file) as image:
            gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        latitude, longitude = (
            sum(float(part) / 60**i for i, part in enumerate(gps[value]))
            * _sign(gps[reference], *hemispheres)
            for value, reference, hemispheres in (
                (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "NS"),
                (ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "EW"),
            )
        )
        check_latlon(np.array([[latitude, longitude]]), str(file))
    except Exception:  # a damaged EXIF block raises anything, from struct.error to ZeroDivisionError
        return float("nan"), float("nan")
    return latitude, longitude


def _sign(reference: str | bytes, positive: str, negative: str) -> int:
    # some cameras write the letter as bytes instead of text
    text = reference.decode("ascii") if isinstance(reference, bytes) else reference
    letter = text.rstrip("\0 ").upper()
    if letter not in (positive, negative):
        raise ValueError(f"hemisphere: wanted {positive} or {negative}, got {reference!r}")
    return 1 if letter == positive else -1
