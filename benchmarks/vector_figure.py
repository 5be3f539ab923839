"""Figures as SVG: the same numbers give the same bytes."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure


def save_svg(figure: Figure, path: Path) -> None:
    """Write the figure without date, and with names of its parts that do not change from run to run."""
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, format="svg", metadata={"Date": None})
