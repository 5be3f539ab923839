"""Images that lie in parts: the subfolders of a folder, and its zips, which are read in place."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from geoclip.datasets.zip_directory import read_zip_directory
from geoclip.image_files import Archive, Folder, PartFiles, find_in_parts


def image_parts(root: Path, stems: pa.LargeStringArray, suffix: str = ".jpg") -> PartFiles:
    """Finds `<stem><suffix>` for each row in the subfolders and zips of a folder.

    A part that was extracted beside its zip is read from its folder. Listing five million files takes
    seconds; nothing is opened.

    Args:
        root: the folder, such as OSV5M's `images/train`.
        stems: (N,) file names without suffix.
        suffix: of the images.

    Raises:
        ValueError: there is no subfolder and no zip, or a zip is damaged.
        OSError: a folder or a zip cannot be read.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    extracted = {folder.name for folder in folders}
    zips = sorted(path for path in root.iterdir() if path.suffix.lower() == ".zip")
    parts: list[tuple[Folder | Archive, pa.LargeStringArray]] = []
    for folder in folders:
        names = pa.array(os.listdir(folder), pa.large_string())
        parts.append((Folder(folder, suffix), _stems(names.filter(pc.ends_with(names, suffix)))))
    for path in zips:
        if path.stem not in extracted:
            directory = read_zip_directory(path)
            parts.append((directory.archive, _stems(directory.names)))
    if not parts:
        raise ValueError(f"{root} holds no folder and no zip of images")
    return find_in_parts(root, stems, parts)


def zipped_images(path: Path, names: pa.LargeStringArray) -> PartFiles:
    """Finds each row's image in one zip, by its file name whatever folder of the zip it is in.

    Raises:
        OSError: the zip cannot be read.
        ValueError: it is damaged.
    """
    directory = read_zip_directory(path)
    base, inside = (pc.replace_substring_regex(column, r"^.*/", "") for column in (names, directory.names))
    return find_in_parts(path.parent, base, [(directory.archive, inside)])


def _stems(names: pa.LargeStringArray) -> pa.LargeStringArray:
    """File names without folder and suffix."""
    return pc.replace_substring_regex(names, r"^.*/|\.[^./]*$", "")
