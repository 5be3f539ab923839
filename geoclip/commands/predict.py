"""`geoclip predict`: where was this photo taken?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from geoclip.commands.options import (
    DEFAULTS,
    Commands,
    add_device,
    add_gallery,
    add_logit_scale,
    add_support,
    add_weights,
    check_at_least,
    choose_device,
    gallery_cache,
    support_variogram,
    tower_of,
)

if TYPE_CHECKING:
    from geoclip.prediction import Batch


def add_parser(commands: Commands) -> None:
    """Adds `geoclip predict`."""
    predict = commands.add_parser(
        "predict",
        help="where was this photo taken?",
        description="Where photos were taken. A photo that cannot be read is named and left out; the exit "
        "code is then 1.",
        formatter_class=DEFAULTS,
    )
    predict.set_defaults(run=run)
    predict.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="image files, folders of them, a folder that `geoclip embed` wrote, or - for paths on standard "
        "input, one a line",
    )
    add_weights(predict)
    add_gallery(predict)
    add_logit_scale(predict)
    add_support(predict)
    predict.add_argument("--top-k", type=int, default=5, help="places per photo")
    predict.add_argument(
        "--format", default="csv", choices=("csv", "json", "geojson"), help="of what is written"
    )
    predict.add_argument("--out", metavar="FILE", help="file to write; standard output if left out")
    predict.add_argument(
        "--density", type=float, metavar="DEGREES", help="add a map of the probability, with cells this wide "
        "(json and geojson)",
    )  # fmt: skip
    predict.add_argument("--batch-size", type=int, default=32, help="photos per step")
    add_device(predict)


def run(options: argparse.Namespace) -> int:
    """Runs `geoclip predict`; returns 1 where photos were left out."""
    from geoclip.embedding_store import EmbeddingStore, is_store
    from geoclip.gallery import Gallery, MapCells
    from geoclip.places import read_places
    from geoclip.prediction import embed_files, find_photos, predict, stored_embeddings
    from geoclip.prediction_formats import FORMATS
    from geoclip.progress import progress_bar
    from geoclip.weights import load_weights
    from semivario_kernels.atomic import write_atomically

    check_at_least(options, batch_size=1)
    if options.density is not None and options.format == "csv":
        raise ValueError("--density: wanted --format json or geojson, which have a map, got csv")
    variogram = support_variogram(options)
    weights = load_weights(options.checkpoint, choose_device(options.device), options.weights)
    broken: list[str] = []

    def leave_out(reason: str) -> None:
        broken.append(reason)
        print(f"geoclip: {reason}", file=sys.stderr)

    if len(options.photos) == 1 and is_store(options.photos[0]):
        store = EmbeddingStore.open(options.photos[0])
        weights.check_embeddings(options.photos[0], store.dim, store.info)
        total = len(store)
        batches = stored_embeddings(store, batch_size=options.batch_size)
    else:
        photos = find_photos(options.photos, sys.stdin)
        tower = tower_of(weights, options)
        total = len(photos)
        batches = embed_files(photos, tower, batch_size=options.batch_size, on_broken=leave_out)
    progress = sys.stderr.isatty()
    latlon = read_places(options.gallery)
    if not 1 <= options.top_k <= len(latlon):
        raise ValueError(f"--top-k: wanted 1 to {len(latlon)} (the gallery's places), got {options.top_k}")
    cells = None if options.density is None else MapCells(latlon, options.density)
    gallery = Gallery(
        weights.model,
        latlon,
        logit_scale=options.logit_scale,
        cache=gallery_cache(options),
        progress=progress,
    )
    with progress_bar("placing photos", total, "photos", enabled=progress) as advance:
        predictions = predict(_counted(batches, advance), gallery, options.top_k, cells, variogram)
        pieces = FORMATS[options.format](predictions)
        if options.out is None:
            for piece in pieces:
                sys.stdout.write(piece)
        else:
            out = Path(options.out)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, lambda file: file.writelines(piece.encode() for piece in pieces))
    if total > 1 and broken:
        print(f"geoclip: {len(broken):,} of {total:,} photos left out", file=sys.stderr)
    return 1 if broken else 0


def _counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(len(batch[0]))
