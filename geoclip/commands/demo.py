"""`geoclip demo`: all of it on real coordinates, without photos."""

from __future__ import annotations

import argparse
from pathlib import Path

from geoclip.commands.options import DEFAULTS, Commands


def add_parser(commands: Commands) -> None:
    """Adds `geoclip demo`."""
    demo = commands.add_parser(
        "demo",
        help="all of it on real coordinates, without photos, in minutes",
        description="Train with plain InfoNCE and with the semivariogram loss on the official location "
        "encoder's field at 100,000 real places, and compare. A demo that was stopped goes on where it was.",
        formatter_class=DEFAULTS,
    )
    demo.set_defaults(run=run)
    demo.add_argument(
        "--out", default="runs/demo", help="folder for data, checkpoints, metrics.json, report.html"
    )
    demo.add_argument("--steps", type=int, help="training steps; those of the shipped settings if left out")
    demo.add_argument("--places", type=int, help="only the first so many coordinates, for a quick look")
    demo.add_argument("--held-out", type=int, default=4000, help="places held out for the evaluation")
    demo.add_argument("--noise", type=float, default=0.8, help="length of the noise on the unit embeddings")
    demo.add_argument("--seed", type=int, default=0, help="of everything random")


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip demo`."""
    from geoclip.demo import run_demo

    run_demo(
        Path(options.out),
        steps=options.steps,
        places=options.places,
        held_out=options.held_out,
        noise=options.noise,
        seed=options.seed,
    )
