"""`geoclip eval`: accuracy on held-out embeddings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoclip.commands.options import (
    DEFAULTS,
    Commands,
    add_choice_of_weights,
    add_device,
    add_gallery,
    add_logit_scale,
    add_support,
    check_at_least,
    choose_device,
    gallery_cache,
    support_variogram,
)

if TYPE_CHECKING:
    from geoclip.embedding_store import EmbeddingStore
    from geoclip.evaluation import Placed
    from geoclip.gallery import Gallery

_CALIBRATED, _ENOUGH = 1000, 200  # photos: the fitted number is then known to some percent


def add_parser(commands: Commands) -> None:
    """Adds `geoclip eval`."""
    evaluate = commands.add_parser(
        "eval",
        help="accuracy on held-out embeddings",
        description="How often the answer lies within 1, 25, 200, 750 and 2500 km, the errors' median and "
        "mean, GeoScore, recall and, where the photos name them, countries and cities, with 95 % "
        "intervals; and a report with a map of the errors.",
        formatter_class=DEFAULTS,
    )
    evaluate.set_defaults(run=run)
    evaluate.add_argument(
        "checkpoint", help="what `geoclip fit` or `geoclip export` wrote, or upstream: the official weights"
    )
    evaluate.add_argument("test", help="folder that `geoclip embed` wrote: photos the model has not seen")
    add_choice_of_weights(evaluate)
    add_gallery(evaluate)
    add_logit_scale(evaluate)
    add_support(evaluate)
    evaluate.add_argument(
        "--labels",
        metavar="STORE",
        help="folder of embeddings whose photos' countries, regions, sub-regions and cities name the "
        "predictions; the gallery if left out, where it is such a folder",
    )
    evaluate.add_argument(
        "--calibrate",
        action="store_true",
        help="also fit the logit scale under which the probabilities suit these photos, which should be "
        "validation photos: for --logit-scale with others, the same checkpoint and the same gallery",
    )
    evaluate.add_argument("--out", default="metrics.json", help="metrics; the report, .html, goes beside it")
    evaluate.add_argument(
        "--bootstrap", type=int, default=1000, help="resamples of the intervals of median, mean and GeoScore"
    )
    add_device(evaluate)


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip eval`."""
    from geoclip.embedding_store import EmbeddingStore
    from geoclip.evaluation import country_table, place_store, recall_metrics
    from geoclip.evaluation_report import write_evaluation_report
    from geoclip.gallery import Gallery
    from geoclip.metrics import geolocation_metrics
    from geoclip.places import read_places
    from geoclip.weights import load_weights
    from semivario_kernels.atomic import write_atomically

    check_at_least(options, bootstrap=1)
    out = Path(options.out)
    if out.suffix == ".html":
        raise ValueError(f"--out: {out}: the report goes to the .html of this name; wanted another suffix")
    out.parent.mkdir(parents=True, exist_ok=True)
    test = EmbeddingStore.open(options.test)
    if test.info.get("split") == "train":
        print(f"warning: {options.test} holds the training split: wanted unseen photos", file=sys.stderr)
    variogram = support_variogram(options)
    weights = load_weights(options.checkpoint, choose_device(options.device), options.weights)
    weights.check_embeddings(options.test, test.dim, test.info)
    progress = sys.stderr.isatty()
    gallery = Gallery(
        weights.model,
        read_places(options.gallery),
        logit_scale=options.logit_scale,
        cache=gallery_cache(options),
        progress=progress,
    )
    placed = place_store(gallery, test, variogram=variogram, progress=progress)
    areas = _areas(options, test, placed)
    result: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "weights": weights.choice,
        "test": options.test,
        "gallery": options.gallery,
        "variogram": options.variogram,
        "logit_scale": gallery.logit_scale,
        "photos": len(test),
        "places": placed.places,
        "metrics": geolocation_metrics(placed.latlon, placed.true_latlon, bootstrap=options.bootstrap),
        "recall": recall_metrics(placed),
        "areas": areas,
        "countries": country_table(placed, test.areas["country"]) if "country" in test.areas else [],
    }
    if options.calibrate:
        result["calibration"] = _calibrate(gallery, test)
    write_atomically(out, lambda file: file.write(json.dumps(result, indent=1).encode()))
    report = write_evaluation_report(out.with_suffix(".html"), result, placed, gallery.latlon)
    for name, entry in {**result["metrics"], **result["recall"], **areas.get("accuracy", {})}.items():
        print(f"{name:20} {entry['value']:10.3f}   [{entry['low']:.3f}, {entry['high']:.3f}]")
    if options.calibrate:
        _say_calibrated(result["calibration"], gallery.logit_scale)
    if "why_not" in areas:
        print(f"administrative areas not measured: {areas['why_not']}")
    print(f"{len(test):,} photos, {placed.places:,} places; written to {out} and {report}")


def _calibrate(gallery: Gallery, test: EmbeddingStore) -> dict[str, Any]:
    """The scale that suits these photos, of many an even choice, and what their radii then cover."""
    import numpy as np

    from geoclip.calibration import calibrated_logit_scale, coverage
    from geoclip.evaluation import pictures_of
    from geoclip.prediction import SHARES

    rows = np.unique(np.linspace(0, len(test) - 1, _CALIBRATED).astype(np.int64))
    photos, latlon = pictures_of(test, rows), test.latlon[rows]
    scale = calibrated_logit_scale(gallery, photos, latlon)
    return {
        "photos": len(rows),
        "logit_scale": scale,
        "coverage": coverage(gallery, photos, latlon, scale, SHARES),
        "coverage_at_the_scale_used": coverage(gallery, photos, latlon, gallery.logit_scale, SHARES),
        "shares": list(SHARES),
    }


def _say_calibrated(calibration: dict[str, Any], used: float) -> None:
    photos = calibration["photos"]
    print(f"calibrated on {photos:,} of these photos, for this checkpoint and gallery alone:")
    print(f"  --logit-scale {calibration['logit_scale']:.4g}   (used here: {used:.4g})")
    columns = (calibration["shares"], calibration["coverage"], calibration["coverage_at_the_scale_used"])
    for share, calibrated, before in zip(*columns, strict=True):
        print(
            f"  the radius that holds {share:.0%} of the probability covers {calibrated:.1%} of them   "
            f"({before:.1%})"
        )
    if photos < _ENOUGH:
        print(f"warning: {photos} photos calibrate poorly; wanted {_ENOUGH} or more", file=sys.stderr)


def _areas(options: argparse.Namespace, test: EmbeddingStore, placed: Placed) -> dict[str, Any]:
    """The administrative accuracies and where the labels came from, or why there are none."""
    from geoclip.embedding_store import EmbeddingStore, is_store
    from geoclip.evaluation import area_metrics

    if not test.areas:
        return {"why_not": f"{options.test} names no countries, regions, sub-regions or cities"}
    source = options.labels or (options.gallery if is_store(options.gallery) else None)
    if source is None:
        return {"why_not": "--labels names no folder with places whose areas are known"}
    labels = EmbeddingStore.open(source)
    metrics = area_metrics(placed, test.areas, labels.latlon, labels.areas)
    if not metrics["accuracy"]:
        return {"why_not": f"{source} names none of the areas that {options.test} names"}
    return {"labels": source, **metrics}
