"""`geoclip embed`: photos to cached embeddings."""

from __future__ import annotations

import argparse

from geoclip.commands.options import DEFAULTS, Commands, add_backbone, image_encoder


def add_parser(commands: Commands) -> None:
    """Adds `geoclip embed`."""
    embed = commands.add_parser("embed", help="photos to cached embeddings", formatter_class=DEFAULTS)
    embed.set_defaults(run=run)
    embed.add_argument(
        "photos", help=".csv or .parquet with path, latitude, longitude; or a folder of JPEGs with GPS"
    )
    embed.add_argument("out", help="folder for the embeddings")
    embed.add_argument(
        "--image-root", metavar="FOLDER", help="where a table's relative paths start; the table's folder"
    )
    add_backbone(embed)
    embed.add_argument("--batch-size", type=int, default=64, help="photos per step")
    embed.add_argument("--workers", type=int, help="processes that read photos; one per core")
    embed.add_argument("--max-broken", type=int, default=0, help="so many photos may be missing or broken")


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip embed`."""
    from geoclip.embed import embed_photos
    from geoclip.photos import read_photos

    photos = read_photos(options.photos, options.image_root)
    store = embed_photos(
        photos,
        options.out,
        image_encoder=image_encoder(options.backbone, options.pretrained),
        batch_size=options.batch_size,
        workers=options.workers,
        max_broken=options.max_broken,
    )
    print(f"{len(store):,} embeddings of {store.dim} numbers in {options.out}")
