"""CVACT (Liu and Li, 2019): 35,532, 8,884 and 92,802 panoramas and satellite images of Canberra in pairs.

ACT_data.mat                                panoIds, utm, and 1-based rows of trainSet and valSet
ANU_data_small/streetview/<id>_grdView.jpg  ANU_data_small/satview_polish/<id>_satView_polish.jpg
ANU_data_test/                              the same, all of it the test split
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from geoclip.crossview.utm import utm_to_latlon
from geoclip.crossview.views import CrossViews, distinct, existing

_CANBERRA_ZONE = 55
_GROUND, _SATELLITE = "_grdView.jpg", "_satView_polish.jpg"


def read_cvact(root: str | Path, split: str) -> CrossViews:
    """Read a split. Of "test" there are no coordinates.

    Some pairs of the lists are not in the published images: they are left out with a warning.

    Args:
        root: folder of the data set.
        split: "train", "val" or "test".

    Raises:
        FileNotFoundError: a folder or ACT_data.mat is missing, or no pair of the split has its images.
        ValueError: another split, an id that comes twice, or another .mat file.
    """
    root = Path(root)
    if split == "test":
        return _read_test(root)
    if split not in ("train", "val"):
        raise ValueError(f"split: CVACT has train, val and test, got {split!r}")
    from scipy.io import loadmat

    source = existing(root / "ACT_data.mat")
    try:
        table = loadmat(source, variable_names=["panoIds", "utm", f"{split}Set"])
        ids = [str(name).strip() for name in np.ravel(table["panoIds"])]
        utm = np.asarray(table["utm"], dtype=np.float64)
        rows = np.ravel(table[f"{split}Set"][0][0][1]).astype(np.int64) - 1
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(f"{source}: wanted CVACT's panoIds, utm and {split}Set: {error}") from error
    if not len(rows) or rows.min() < 0 or rows.max() >= len(ids) or len(utm) != len(ids):
        raise ValueError(f"{source}: {split}Set, panoIds and utm do not fit together")
    distinct([ids[row] for row in rows], source)
    folder = existing(root / "ANU_data_small")
    ground, satellite = folder / "streetview", folder / "satview_polish"
    present = set(_stems(ground, _GROUND)) & set(_stems(satellite, _SATELLITE))
    kept = [row for row in rows.tolist() if ids[row] in present]
    if not kept:
        raise FileNotFoundError(f"{folder}: no images of the {len(rows)} pairs of split {split}")
    if len(kept) < len(rows):
        warnings.warn(f"{folder}: {len(rows) - len(kept)} of {len(rows)} pairs have no images", stacklevel=2)
    labels = np.array(kept, dtype=np.int64)
    return CrossViews(
        query_files=[ground / (ids[row] + _GROUND) for row in kept],
        reference_files=[satellite / (ids[row] + _SATELLITE) for row in kept],
        query_labels=labels,
        reference_labels=labels,
        reference_latlon=utm_to_latlon(utm[labels, 0], utm[labels, 1], _CANBERRA_ZONE, southern=True),
    )


def _read_test(root: Path) -> CrossViews:
    folder = existing(root / "ANU_data_test")
    ground, satellite = folder / "streetview", folder / "satview_polish"
    ids = sorted(set(_stems(ground, _GROUND)) & set(_stems(satellite, _SATELLITE)))
    if not ids:
        raise FileNotFoundError(f"{folder}: no pairs of images")
    labels = np.arange(len(ids))
    return CrossViews(
        query_files=[ground / (name + _GROUND) for name in ids],
        reference_files=[satellite / (name + _SATELLITE) for name in ids],
        query_labels=labels,
        reference_labels=labels,
    )


def _stems(folder: Path, ending: str) -> list[str]:
    return [path.name.removesuffix(ending) for path in existing(folder).glob(f"*{ending}")]
