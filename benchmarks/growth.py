"""How time and memory of the loss grow with the queries N and the gallery M."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.cases import COMPILED, NAIVE, PRODUCTS, Case, MemoryCase, Sizes
from benchmarks.measure import measure_case
from benchmarks.memory import measure_memory
from benchmarks.progress import Progress
from benchmarks.table import markdown as loss_markdown
from benchmarks.vector_figure import save_svg

BY_M, BY_N = "by M", "by N"
# (N, M) along each axis
GRIDS: dict[Sizes, dict[str, list[tuple[int, int]]]] = {
    "quick": {BY_M: [(32, 48), (32, 96)]},
    "default": {BY_M: [(512, 2048), (512, 8192), (512, 32768)], BY_N: [(128, 8192), (2048, 8192)]},
    "full": {
        BY_M: [(1024, m) for m in (1024, 4096, 16384, 65536)],
        BY_N: [(n, 8192) for n in (256, 1024, 4096)],
    },
}
# each takes six processes
PEAKS: dict[Sizes, list[tuple[int, int]]] = {
    "quick": [],
    "default": [(512, 2048), (512, 32768)],
    "full": GRIDS["full"][BY_M],
}
RIVALS: dict[Sizes, tuple[str, ...]] = {"quick": (NAIVE,), "default": (NAIVE,), "full": (NAIVE, COMPILED)}
COLORS = {NAIVE: "#d9622b", COMPILED: "#b8892b", PRODUCTS: "#7c8aa0", "native": "#2f6fb0", "tiled": "#2f8f83"}


def measure(_: list[str], device: torch.device, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Rows of the loss's tables of time and of memory: forward + backward, policy semivariogram.

    Args:
        sizes: which sizes.
        device: the CPU.
        seconds: timed rounds of a case of the loss; the cases are many, and each gets a quarter of it.
    """
    cases = [Case(axis, n, m, rivals=RIVALS[sizes]) for axis, grid in GRIDS[sizes].items() for n, m in grid]
    peaks = [MemoryCase(n, m, contender=name) for n, m in PEAKS[sizes] for name in (None, NAIVE)]
    times: list[dict[str, Any]] = []
    with Progress(len(cases) + len(peaks)) as progress:
        for case in cases:
            progress.begin(f"{case.name} {case.n:,} × {case.m:,}")
            times += measure_case(case, device, budget_s=seconds / 4, on_round=progress.rounds)
        return {"times": times, "memory": measure_memory(peaks, device, on_case=progress.begin)}


def markdown(result: dict[str, Any]) -> str:
    """The loss's tables under a heading of their own."""
    return loss_markdown(result).replace("# Benchmarks:", "# Growth of the loss:", 1)


def plot(result: dict[str, Any], path: Path) -> None:
    """Time and memory against M and N, on logarithmic axes; rows that failed or are wrong are left out."""
    axes_of = {
        axis: rows
        for axis in (BY_M, BY_N)
        if (rows := [row for row in result["times"] if row["case"] == axis and row["right"] is not False])
    }
    figure = Figure(figsize=(4 * (len(axes_of) + 1), 3.4), layout="constrained")
    panels = figure.subplots(1, len(axes_of) + 1, squeeze=False)[0]
    for ax, (axis, rows) in zip(panels, axes_of.items(), strict=False):
        _lines(ax, axis, [{**row, "y": row["median_s"]} for row in rows if row["median_s"]])
        ax.set_ylabel("forward + backward, s")
    memory = [{**row, "y": row["extra_mib"]} for row in result["memory"] if row["failure"] is None]
    _lines(panels[-1], BY_M, memory)
    panels[-1].set_ylabel("memory beyond inputs and gradients, MiB")
    save_svg(figure, path)


def _lines(ax: Any, axis: str, rows: list[dict[str, Any]]) -> None:
    x, fixed = ("m", "n") if axis == BY_M else ("n", "m")
    for name in dict.fromkeys(row["contender"] for row in rows):
        of_name = sorted((row[x], row["y"]) for row in rows if row["contender"] == name)
        ax.plot(*zip(*of_name, strict=True), "o-", markersize=4, color=COLORS.get(name), label=name)
    ax.set(xscale="log", yscale="log", xlabel=x.upper())
    if rows:
        ax.set_title(f"{fixed.upper()} = {rows[0][fixed]:,}", fontsize=9)
        ax.legend(frameon=False, fontsize=8)
