"""`geoclip crossview fit`, `variogram` and `eval`: photos against satellite images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoclip.commands.options import (
    DEFAULTS,
    Commands,
    add_device,
    check_at_least,
    choose_device,
    say_trained,
)

if TYPE_CHECKING:
    import torch

    from geoclip.crossview.evaluation import Trained
    from geoclip.crossview.views import CrossViews


def add_parser(commands: Commands) -> None:
    """Adds `geoclip crossview`; Lightning's own parser reads the options of its `fit`."""
    crossview = commands.add_parser("crossview", help="photos against satellite images: fit, variogram, eval")
    parts = crossview.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parts.add_parser("fit", help="train: geoclip crossview fit --config cvusa", add_help=False)
    measure = parts.add_parser(
        "variogram",
        help="the semivariogram across the views that --model.policy reads",
        description="Measure and fit how unlike queries and references are at each distance, by the features "
        "of a trained encoder.",
        formatter_class=DEFAULTS,
    )
    measure.set_defaults(run=run_variogram)
    _add_views(measure, "train, if left out")
    measure.add_argument("--out", default="variogram.json", help="the fitted model")
    evaluate = parts.add_parser(
        "eval",
        help="recall, hit rate and average precision on held-out images",
        description="How often a trained encoder finds the reference of a held-out query among all: R@1, 5, "
        "10 and 1 %, hit rate or average precision, as the data set has it, with 95 % intervals.",
        formatter_class=DEFAULTS,
    )
    evaluate.set_defaults(run=run_eval)
    _add_views(evaluate, "the held-out one, val of CVUSA and CVACT, else test, if left out")
    evaluate.add_argument(
        "--query", choices=("drone", "satellite"), default="drone", help="of University-1652: what is sought"
    )
    evaluate.add_argument("--out", default="metrics.json", help="metrics with their intervals")
    evaluate.add_argument(
        "--bootstrap", type=int, default=1000, help="resamples of the intervals of average precision"
    )


def _add_views(parser: argparse.ArgumentParser, split: str) -> None:
    """Adds what `_embed_views` reads."""
    parser.add_argument("checkpoint", help="what `geoclip crossview fit` wrote")
    parser.add_argument("root", help="folder of the data set")
    parser.add_argument(
        "--dataset",
        choices=("cvusa", "cvact", "vigor-same", "vigor-cross", "university1652"),
        help="another one than that of the training",
    )
    parser.add_argument("--split", help=split)
    parser.add_argument("--batch-size", type=int, default=128, help="images at once")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images")
    add_device(parser)


def run_fit(arguments: list[str]) -> None:
    """Runs `geoclip crossview fit`.

    Args:
        arguments: what follows `geoclip crossview fit` on the command line.
    """
    from geoclip.crossview.fit import fit

    say_trained(fit(arguments))


def run_variogram(options: argparse.Namespace) -> None:
    """Runs `geoclip crossview variogram`."""
    from geoclip.crossview.data import read_views
    from geoclip.crossview.evaluation import load_trained
    from geoclip.crossview.mining import cross_variogram

    check_at_least(options, batch_size=1, workers=0)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    trained = load_trained(options.checkpoint)
    dataset, split = options.dataset or trained.data["dataset"], options.split or "train"
    views = read_views(dataset, options.root, split)
    latlon = views.reference_latlon
    if latlon is None:
        raise ValueError(f"{options.root}: {dataset} has no coordinates; wanted a data set of places")
    queries, references = _embed_views(options, trained, views)
    model = cross_variogram(queries, latlon[views.pairs()], references, latlon)
    model.save(out)
    print(model)
    print(f"{len(queries):,} queries, {len(references):,} references of {split}; written to {out}")


def run_eval(options: argparse.Namespace) -> None:
    """Runs `geoclip crossview eval`."""
    from geoclip.crossview.data import held_out_split, read_views
    from geoclip.crossview.evaluation import intervals, load_trained, rank_views
    from semivario_kernels.atomic import write_atomically

    check_at_least(options, bootstrap=1, batch_size=1, workers=0)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    trained = load_trained(options.checkpoint)
    dataset = options.dataset or trained.data["dataset"]
    split = options.split or held_out_split(dataset)
    views = read_views(dataset, options.root, split, query=options.query)
    queries, references = _embed_views(options, trained, views)
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


def _embed_views(
    options: argparse.Namespace, trained: Trained, views: CrossViews
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features (N, D) of the queries and (M, D) of the references."""
    from geoclip.crossview.data import plain_loaders
    from geoclip.crossview.evaluation import embed
    from geoclip.progress import progress_bar

    device = choose_device(options.device)
    encoder = trained.encoder.to(device)
    loaders = plain_loaders(
        views,
        (trained.data["query_size"], trained.data["reference_size"]),
        (encoder.mean, encoder.std),
        batch_size=options.batch_size,
        workers=options.workers,
    )
    images = len(views.query_files) + len(views.reference_files)
    with progress_bar("embedding", images, "images", enabled=sys.stderr.isatty()) as advance:
        queries, references = (embed(encoder, loader, device, advance) for loader in loaders)
    return queries, references
