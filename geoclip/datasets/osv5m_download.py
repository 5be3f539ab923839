"""Fetches OpenStreetView-5M from the Hugging Face hub; the zips stay as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geoclip.datasets.zip_directory import read_zip_directory

REPOSITORY = "osv5m/osv5m"
PARTS = {"train": 98, "test": 5}  # zips of a split


def download_osv5m(
    out: str | Path,
    *,
    splits: Sequence[str] = ("train", "test"),
    parts: Sequence[int] | None = None,
    revision: str = "main",
) -> list[Path]:
    """Downloads tables and zips; what is there already is not fetched again, what was begun goes on.

    Args:
        out: folder for train.csv, test.csv and images/.
        splits: "train", "test" or both. All of it is about 250 GB; a test part is about 2.
        parts: numbers of the zips of each split; all by default, and those that a split does not have are
            passed over.
        revision: branch, tag or commit of the repository.

    Returns:
        The zips, each with a whole list of members.

    Raises:
        ValueError: an unknown split, no such part, or a zip that is damaged.
        OSError: the hub cannot be reached, or the disk refuses a file; the same call goes on where it was.
    """
    from huggingface_hub import HfApi, snapshot_download

    if unknown := set(splits) - PARTS.keys():
        raise ValueError(f"splits: wanted train or test, got {sorted(unknown)[0]!r}")
    names = [
        f"images/{split}/{number:02d}.zip"
        for split in splits
        for number in range(PARTS[split])
        if parts is None or number in parts
    ]
    if not names:
        raise ValueError(f"parts: wanted some of 0 to {max(PARTS[s] for s in splits) - 1}, got {parts}")
    out = Path(out)
    try:
        # asked for by its commit: what cannot be reached is an error here, where the client would take what
        # lies in the folder already for the answer
        commit = HfApi().dataset_info(REPOSITORY, revision=revision).sha
        snapshot_download(
            REPOSITORY,
            repo_type="dataset",
            revision=commit,
            local_dir=out,
            allow_patterns=[*(f"{split}.csv" for split in splits), *names],
        )
    # The client's errors share no base class: no network, no such revision, a full disk, ...
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(f"cannot download {REPOSITORY} to {out}: {reason}; the same command goes on") from error
    zips = [out / name for name in names]
    for path in zips:
        if not path.exists():
            raise ValueError(f"{path}: revision {revision} of {REPOSITORY} has no such file")
        read_zip_directory(path)
    return zips
