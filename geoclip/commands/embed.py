"""`geoclip embed`: photos to cached embeddings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from geoclip.commands.options import (
    DEFAULTS,
    Commands,
    add_backbone,
    add_choice_of_weights,
    image_encoder,
    tower_of,
)

if TYPE_CHECKING:
    from geoclip.image_encoder import ImageEncoder


def add_parser(commands: Commands) -> None:
    """Adds `geoclip embed`."""
    embed = commands.add_parser(
        "embed",
        help="photos to cached embeddings",
        description="Run an image backbone over every photo, once. A command that was interrupted goes on "
        "where it was; torchrun --nproc-per-node 8 -m geoclip embed ... uses eight GPUs.",
        formatter_class=DEFAULTS,
    )
    embed.set_defaults(run=run)
    embed.add_argument(
        "photos",
        help=".csv or .parquet with path, latitude, longitude; a folder of JPEGs with GPS; the folder of a "
        "published data set; WebDataset shards",
    )
    embed.add_argument("out", help="folder for the embeddings")
    embed.add_argument(
        "--layout",
        metavar="NAME",
        help="osv5m, mp16, im2gps3k, yfcc26k, yfcc4k, gws15k, webdataset, table or folder; told from what is "
        "there",
    )
    embed.add_argument(
        "--split", choices=("train", "test"), help="which part of OSV5M; elsewhere what the photos are for"
    )
    embed.add_argument(
        "--image-root", metavar="FOLDER", help="where a table's relative paths start; the table's folder"
    )
    embed.add_argument(
        "--only-present", action="store_true", help="leave out photos whose file is not there, unlisted"
    )
    add_backbone(embed)
    embed.add_argument(
        "--checkpoint",
        help="what `geoclip fit` wrote: embed with the backbone that it fine-tuned, or names, in place of "
        "--backbone and --pretrained",
    )
    add_choice_of_weights(embed)
    # what nobody typed
    embed.set_defaults(untouched=(embed.get_default("backbone"), embed.get_default("pretrained")))
    embed.add_argument("--batch-size", type=int, default=64, help="photos per step")
    embed.add_argument("--workers", type=int, help="processes that read photos; one per core")
    embed.add_argument(
        "--max-broken",
        type=_limit,
        default=0,
        metavar="LIMIT",
        help="so many photos, or such a part of them (1%% or 0.01), may be missing or broken",
    )
    pictures = embed.add_mutually_exclusive_group()
    pictures.add_argument(
        "--views",
        type=int,
        default=0,
        metavar="K",
        help="store K random views of each photo too, for training",
    )
    pictures.add_argument(
        "--tencrop", action="store_true", help="store the mean of ten crops, and the ten, for evaluation"
    )
    embed.add_argument("--seed", type=int, default=0, help="of the random views")
    embed.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "fp16", "bf16"),
        help="of the backbone; auto is fp16 on a GPU, else fp32",
    )
    embed.add_argument("--device", help="such as cuda or cpu; a GPU where there is one if left out")


def _limit(text: str) -> float:
    try:
        part = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        part = -1
    if not part >= 0 or (part >= 1 and (text.endswith("%") or not part.is_integer())):
        raise argparse.ArgumentTypeError(
            f"wanted a number of photos, or a part of them such as 1% or 0.01, got {text!r}"
        )
    return part


def _encoder(options: argparse.Namespace) -> tuple[ImageEncoder, str | None]:
    """The tower that --backbone names, or the one of --checkpoint, and the fingerprint of its training."""
    if options.checkpoint is None:
        if options.weights is not None:
            raise ValueError(f"--weights: wanted with --checkpoint alone, got {options.weights}")
        return image_encoder(options.backbone, options.pretrained), None
    if (options.backbone, options.pretrained) != options.untouched:
        raise ValueError(
            f"--backbone, --pretrained: wanted neither with --checkpoint {options.checkpoint}, "
            "which has its own"
        )
    import torch

    from geoclip.weights import load_weights

    weights = load_weights(options.checkpoint, torch.device("cpu"), options.weights)
    return tower_of(weights, argparse.Namespace(backbone=None, pretrained=None)), weights.tuned


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip embed`."""
    import numpy as np
    import torch

    from geoclip.datasets import read_photos
    from geoclip.embed import embed_photos
    from geoclip.ranks import Ranks

    ranks = Ranks()
    photos = read_photos(
        options.photos, layout=options.layout, split=options.split, image_root=options.image_root
    )
    if options.only_present:
        present = photos.images.present()
        if not present.any():
            raise ValueError(f"--only-present: none of {len(photos):,} photos of {options.photos} is there")
        if ranks.rank == 0:
            print(f"{present.sum():,} of {len(photos):,} photos are there", file=sys.stderr)
        photos = photos.take(np.flatnonzero(present))
    device = options.device
    if device is None:
        gpus = torch.cuda.device_count()
        device = f"cuda:{ranks.device_index % gpus}" if gpus else "cpu"
    encoder, tuned = _encoder(options)
    store = embed_photos(
        photos,
        options.out,
        image_encoder=encoder.to(device),
        batch_size=options.batch_size,
        workers=options.workers,
        max_broken=options.max_broken,
        views=options.views,
        tencrop=options.tencrop,
        precision=options.precision,
        seed=options.seed,
        tuned=tuned,
    )
    if ranks.rank == 0:
        print(f"{len(store):,} embeddings of {store.dim} numbers in {options.out}")
        if left_out := len(photos) - len(store):
            print(
                f"{left_out:,} of {len(photos):,} photos left out: see {Path(options.out) / 'broken.txt'}",
                file=sys.stderr,
            )
