"""`geoclip crossview fit` and `geoclip crossview eval`: photos against satellite images."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from geoclip.commands.options import DEFAULTS, Commands, add_device, choose_device


def add_parser(commands: Commands) -> None:
    """Adds `geoclip crossview`; Lightning's own parser reads the options of its `fit`."""
    crossview = commands.add_parser("crossview", help="photos against satellite images: fit and eval")
    parts = crossview.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parts.add_parser("fit", help="train: geoclip crossview fit --config cvusa", add_help=False)
    evaluate = parts.add_parser(
        "eval", help="recall, hit rate and average precision on held-out images", formatter_class=DEFAULTS
    )
    evaluate.set_defaults(run=run_eval)
    evaluate.add_argument("checkpoint", help="what `geoclip crossview fit` wrote")
    evaluate.add_argument("root", help="folder of the data set")
    evaluate.add_argument(
        "--dataset",
        choices=("cvusa", "cvact", "vigor-same", "vigor-cross", "university1652"),
        help="another one than that of the training",
    )
    evaluate.add_argument("--split", help="the held-out one, val of CVUSA and CVACT, else test, if left out")
    evaluate.add_argument(
        "--query", choices=("drone", "satellite"), default="drone", help="of University-1652: what is sought"
    )
    evaluate.add_argument("--out", default="metrics.json", help="metrics with their intervals")
    evaluate.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals")
    evaluate.add_argument("--batch-size", type=int, default=128, help="images at once")
    evaluate.add_argument("--workers", type=int, default=4, help="processes that read images")
    add_device(evaluate)


def run_fit(arguments: list[str]) -> None:
    """Runs `geoclip crossview fit`.

    Args:
        arguments: what follows `geoclip crossview fit` on the command line.
    """
    from geoclip.crossview.fit import fit

    checkpoint = fit(arguments)
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0:
        print(f"trained: {checkpoint}")


def run_eval(options: argparse.Namespace) -> None:
    """Runs `geoclip crossview eval`."""
    from geoclip.crossview.data import held_out_split, plain_loaders, read_views
    from geoclip.crossview.evaluation import embed, intervals, load_trained, rank_views
    from geoclip.progress import progress_bar
    from semivario_kernels.atomic import write_atomically

    for name, low in (("bootstrap", 1), ("batch_size", 1), ("workers", 0)):  # before the long work
        if (value := getattr(options, name)) < low:
            raise ValueError(f"--{name.replace('_', '-')}: wanted at least {low}, got {value}")
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    device = choose_device(options.device)
    encoder, data = load_trained(options.checkpoint)
    dataset = options.dataset or data["dataset"]
    split = options.split or held_out_split(dataset)
    views = read_views(dataset, options.root, split, query=options.query)
    encoder.to(device)
    loaders = plain_loaders(
        views,
        (data["query_size"], data["reference_size"]),
        (encoder.mean, encoder.std),
        batch_size=options.batch_size,
        workers=options.workers,
    )
    images = len(views.query_files) + len(views.reference_files)
    with progress_bar("embedding", images, "images", enabled=sys.stderr.isatty()) as advance:
        queries, references = (embed(encoder, loader, device, advance) for loader in loaders)
    metrics = intervals(rank_views(views, queries, references), bootstrap=options.bootstrap)
    result: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "dataset": dataset,
        "root": options.root,
        "split": split,
        "queries": len(queries),
        "references": len(references),
        "metrics": metrics,
    }
    write_atomically(out, lambda file: file.write(json.dumps(result, indent=1).encode()))
    for name, entry in metrics.items():
        print(f"{name:12} {entry['value']:8.4f}   [{entry['low']:.4f}, {entry['high']:.4f}]")
    print(f"{len(queries):,} queries, {len(references):,} references of {split}; written to {out}")
