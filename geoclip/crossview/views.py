"""One split of a cross-view data set: which images there are and which belong together."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CrossViews:
    """N queries (seen from the ground, or by a drone) and M references (satellite images).

    Attributes:
        query_files: the N images.
        reference_files: the M images.
        query_labels: (N,) int64 number of the place that a query shows.
        reference_labels: (M,) int64; a reference is right for the queries of its label.
        semi_positives: (N, K) int64 rows of references that show a query's place off their centre, −1 padded:
            neither right nor wrong (VIGOR).
        reference_latlon: (M, 2) degrees, where the data set has coordinates.
    """

    query_files: list[Path]
    reference_files: list[Path]
    query_labels: NDArray[np.int64]
    reference_labels: NDArray[np.int64]
    semi_positives: NDArray[np.int64] | None = None
    reference_latlon: NDArray[np.float64] | None = None

    def checksum(self, value: int = 0) -> int:
        """CRC-32 of the images' names and labels, wherever they lie; goes on from another split's `value`."""
        for files, labels in (
            (self.query_files, self.query_labels),
            (self.reference_files, self.reference_labels),
        ):
            value = zlib.crc32(os.fsencode("/".join(file.name for file in files)), value)
            value = zlib.crc32(np.ascontiguousarray(labels).data, value)
        return value

    def pairs(self) -> NDArray[np.int64]:
        """(N,) the one reference of every query, for training.

        Raises:
            ValueError: a label has several references or none.
        """
        order = np.argsort(self.reference_labels, kind="stable")
        labels = self.reference_labels[order]
        if (labels[1:] == labels[:-1]).any():
            label = labels[:-1][labels[1:] == labels[:-1]][0]
            raise ValueError(f"reference_labels: wanted every label once for training, got {label} twice")
        found = np.minimum(np.searchsorted(labels, self.query_labels), len(labels) - 1)
        if (labels[found] != self.query_labels).any():
            row = int(np.argmax(labels[found] != self.query_labels))
            raise ValueError(f"query_labels: {self.query_files[row]} has no reference")
        references: NDArray[np.int64] = order[found]
        return references


def distinct(ids: list[str], source: object) -> list[str]:
    """The ids as they are; ValueError names one that comes twice."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(f"{source}: wanted every id once, got {name} again")
        seen.add(name)
    return ids


def existing(folder: Path) -> Path:
    """The folder or file as it is; FileNotFoundError names one that is missing."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such file or folder")
    return folder
