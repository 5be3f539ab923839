"""`geoclip download`: fetch a published data set."""

from __future__ import annotations

import argparse

from geoclip.commands.options import DEFAULTS, Commands


def add_parser(commands: Commands) -> None:
    """Adds `geoclip download`."""
    download = commands.add_parser(
        "download",
        help="fetch OpenStreetView-5M from Hugging Face",
        description="Fetch tables and zips of a data set; geoclip embed reads the zips where they are. A "
        "command that was interrupted goes on where it was.",
        formatter_class=DEFAULTS,
    )
    download.set_defaults(run=run)
    download.add_argument("dataset", choices=("osv5m",), help="the data set")
    download.add_argument("out", help="folder for it")
    download.add_argument(
        "--split", choices=("train", "test"), help="only this one; both, some 250 GB, if left out"
    )
    download.add_argument(
        "--parts", type=_numbers, metavar="N,N-M", help="only these zips of a split, such as 0-4,17"
    )
    download.add_argument("--revision", default="main", help="branch, tag or commit on the hub")


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


_numbers.__name__ = "list of numbers"  # what argparse calls it


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip download`."""
    from geoclip.datasets.osv5m_download import download_osv5m

    splits = ("train", "test") if options.split is None else (options.split,)
    zips = download_osv5m(options.out, splits=splits, parts=options.parts, revision=options.revision)
    print(
        f"{len(zips)} zips of {' and '.join(splits)} in {options.out}; next: geoclip embed {options.out} ..."
    )
