"""`geoclip eval`: accuracy on held-out embeddings."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from geoclip.commands.options import DEFAULTS, Commands, add_gallery


def add_parser(commands: Commands) -> None:
    """Adds `geoclip eval`."""
    evaluate = commands.add_parser("eval", help="accuracy on held-out embeddings", formatter_class=DEFAULTS)
    evaluate.set_defaults(run=run)
    evaluate.add_argument("checkpoint", help="what `geoclip fit` wrote, for example runs/fit/last.ckpt")
    evaluate.add_argument("test", help="folder that `geoclip embed` wrote: photos the model has not seen")
    add_gallery(evaluate)
    evaluate.add_argument("--out", default="metrics.json", help="metrics with bootstrap intervals")
    evaluate.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals")


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip eval`."""
    import torch

    from geoclip.embedding_store import EmbeddingStore
    from geoclip.fit import load_trained
    from geoclip.gallery import Gallery
    from geoclip.metrics import geolocation_metrics
    from geoclip.places import read_places
    from semivario_kernels.atomic import write_atomically

    Path(options.out).parent.mkdir(parents=True, exist_ok=True)  # before the long work
    test = EmbeddingStore.open(options.test)
    module = load_trained(options.checkpoint)
    gallery = Gallery(module.model, read_places(options.gallery), progress=True)
    predicted, _ = gallery.place(torch.from_numpy(test.read(range(len(test)))))
    metrics = geolocation_metrics(predicted[:, 0], test.latlon, bootstrap=options.bootstrap)
    write_atomically(options.out, lambda file: file.write(json.dumps(metrics, indent=1).encode()))
    for name, entry in metrics.items():
        print(f"{name:16} {entry['value']:10.3f}   [{entry['low']:.3f}, {entry['high']:.3f}]")
    print(f"{len(test):,} photos, {len(gallery.latlon):,} places; written to {options.out}")
