"""`geoclip variogram`: measure and fit the semivariogram of embeddings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from geoclip.commands.options import DEFAULTS, Commands


def add_parser(commands: Commands) -> None:
    """Adds `geoclip variogram`."""
    variogram = commands.add_parser(
        "variogram",
        help="measure and fit the semivariogram of embeddings",
        description="Measure how unlike photos are at each distance, and fit the model that `geoclip fit "
        "--model.variogram` trains with. A command that was interrupted goes on where it was.",
        formatter_class=DEFAULTS,
    )
    variogram.set_defaults(run=run)
    variogram.add_argument("store", help="folder that `geoclip embed` wrote: training data only")
    variogram.add_argument("--out", default="variogram.json", help="fitted model; .npz and .png go beside it")
    variogram.add_argument(
        "--max-pairs",
        type=_pairs,
        default=200_000_000,
        metavar="N",
        help="multiply at most about so many pairs, a random sample, 1e9 for example, or all; few photos "
        "hold fewer at each distance",
    )
    variogram.add_argument(
        "--max-lag-km", type=float, metavar="KM", help="leave out pairs beyond; they then cost little"
    )
    variogram.add_argument("--places", type=int, metavar="N", help="use a random sample of so many photos")
    variogram.add_argument(
        "--kind",
        default="stable",
        choices=("stable", "exponential", "gaussian", "spherical", "matern32", "nested"),
        help="model fitted; nested is the sum of two exponential ones",
    )
    variogram.add_argument(
        "--metric",
        default="chord",
        choices=("chord", "arc"),
        help="distance that the model reads: straight through the Earth, where every kind is a covariance, "
        "or along its surface",
    )
    variogram.add_argument("--first-km", type=float, default=1.0, help="end of the first distance bin")
    variogram.add_argument("--last-km", type=float, default=20_000.0, help="end of the last distance bin")
    variogram.add_argument("--bins", type=int, default=30, help="distance bins")
    variogram.add_argument("--seed", type=int, default=0, help="of the samples")
    variogram.add_argument(
        "--restart", action="store_true", help="forget what an interrupted command has measured"
    )


def _pairs(text: str) -> int | None:
    """None for all of them."""
    if text == "all":
        return None
    number = float(text)
    if not number.is_integer() or number < 1:
        raise ValueError
    return int(number)


_pairs.__name__ = "number of pairs"  # what argparse calls it


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip variogram`."""
    from geoclip.embedding_store import EmbeddingStore
    from geoclip.measure import measure_variogram
    from semivario_kernels import log_edges_km

    store, out = EmbeddingStore.open(options.store), Path(options.out)
    if options.restart:
        out.with_suffix(".checkpoint").unlink(missing_ok=True)
    fit = measure_variogram(
        store,
        out,
        places=options.places,
        max_pairs=options.max_pairs,
        max_lag_km=options.max_lag_km,
        edges_km=log_edges_km(options.first_km, options.last_km, options.bins),
        kind=options.kind,
        metric=options.metric,
        seed=options.seed,
    )
    pairs = int(fit.empirical.counts.sum())
    sampled = "a sample of " if fit.empirical.sampled else ""
    print(f"{sampled}{pairs:,} pairs of {store.path}, taken as training data")
    print(f"{fit.model}, R² {fit.r2:.3f}; written to {options.out}")
    if not fit.resolvable:
        print(f"warning: no resolvable range: {fit.note}", file=sys.stderr)
