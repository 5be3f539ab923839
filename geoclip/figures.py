"""The report's figures: each function draws one of them into a matplotlib Axes and can be used alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, PowerNorm
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from geoclip.coordinates import check_latlon
from geoclip.location_encoder import equal_earth
from geoclip.metrics import THRESHOLDS_KM, great_circle_km

# Middle tones, readable on white and on near-black; the baseline (first run) is the quiet one.
RUN_COLORS = ("#7c8aa0", "#d9622b", "#2f8f83", "#8a63b8", "#b8892b")
HARD, FALSE = "#d9622b", "#2f6fb0"
MARKS = "#6f7a87"
LAND = "#8e98a5"

_DENSITY = LinearSegmentedColormap.from_list("density", ["#5b54b812", "#5b54b8"])
_ERROR = LinearSegmentedColormap.from_list("error", ["#2f7fc1", "#6fa8a8", "#e0a63a", "#d8572a", "#a3152e"])
_HALF_EARTH_KM = 20015.1
_SHORTEST_KM = 0.1


def plot_surprise(
    ax: Axes, h_km: ArrayLike, d: ArrayLike, gamma: ArrayLike, range_km: float | None = None
) -> None:
    """Draw the density of the surprise e = γ(h) − d at each distance.

    Every column adds up to one, so that the few near pairs show as clearly as the many far ones. Pairs nearer
    than 0.1 km stand in the first column.

    Args:
        ax: matplotlib Axes.
        h_km: (n,) distances of the pairs in km.
        d: (n,) visual dissimilarities.
        gamma: (n,) fitted semivariogram at these distances.
        range_km: where correlation ends; parts false negatives from hard negatives. None draws no border.

    Raises:
        ValueError: arrays of different or zero length, or a value that is not finite.
    """
    h, e = _column("h_km", h_km), _column("gamma", gamma) - _column("d", d, len(np.atleast_1d(gamma)))
    if len(h) != len(e):
        raise ValueError(f"h_km: wanted one distance per pair ({len(e)}), got {len(h)}")
    columns = int(np.clip(np.sqrt(len(h)) / 4, 12, 72))
    h_edges = np.geomspace(_SHORTEST_KM, _HALF_EARTH_KM, columns + 1)
    room = 0.06 * max(np.ptp(e), 1e-3)  # four times as much at the top, for the labels
    bottom, top = min(e.min(), 0) - room, max(e.max(), 0) + 4 * room
    e_edges = np.linspace(bottom, top, columns + 1)
    pairs = np.histogram2d(np.clip(h, h_edges[0], h_edges[-1]), e, [h_edges, e_edges])[0]
    column_pairs = pairs.sum(axis=1, keepdims=True)
    # with fewer pairs a column would be a bar code, not a density
    share = np.where(column_pairs >= 8, pairs / np.maximum(column_pairs, 1), 0)
    ax.set_xscale("log")
    ax.pcolormesh(
        h_edges,
        e_edges,
        np.ma.masked_equal(share.T, 0),
        cmap=_DENSITY,
        norm=PowerNorm(0.6, 0, np.quantile(share[share > 0], 0.99) if share.any() else 1),
        rasterized=True,
    )
    ax.axhline(0, color=MARKS, linewidth=1)
    if range_km is not None and h_edges[0] < range_km < h_edges[-1]:
        ax.axvline(range_km, color=MARKS, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.fill_between([h_edges[0], range_km], 0, top, color=FALSE, alpha=0.08, linewidth=0, zorder=0)
        ax.fill_between([range_km, h_edges[-1]], 0, top, color=HARD, alpha=0.08, linewidth=0, zorder=0)
    ax.set_xlim(h_edges[0], h_edges[-1])
    ax.set_ylim(bottom, top)
    _region(ax, 0.02, "left", FALSE, "alike", "because near:", "false negatives")
    _region(ax, 0.98, "right", HARD, "alike", "although far:", "hard negatives")
    _distance_axis(ax, "distance of the pair, km")
    ax.set_ylabel("surprise e = γ(h) − d")


def plot_curves(ax: Axes, curves: Mapping[str, Mapping[str, ArrayLike]], key: str = "loss") -> None:
    """Draw one recorded quantity of every run against the step: a running mean over the faint raw line.

    Args:
        ax: matplotlib Axes.
        curves: run name to columns of one length, among them "step"; runs without `key` are left out.
        key: the quantity.

    Raises:
        ValueError: a column's length differs from "step"'s.
    """
    for run, color in run_colors(curves).items():
        columns = curves[run]
        if key not in columns:
            continue
        step = np.asarray(columns["step"], dtype=float)
        value = np.asarray(columns[key], dtype=float)
        if step.shape != value.shape or step.ndim != 1:
            raise ValueError(
                f"curves: wanted {run}'s {key} as long as its step {step.shape}, got {value.shape}"
            )
        known = np.isfinite(value)
        step, value = step[known], value[known]
        smooth = _running_mean(value, max(1, len(value) // 40))
        ax.plot(step, value, color=color, alpha=0.22, linewidth=0.7)
        ax.plot(step, smooth, color=color, linewidth=1.8, label=run)
    ax.set_xlabel("step")
    ax.set_ylabel(key.replace("_", " "))
    ax.margins(x=0)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def plot_error_map(
    ax: Axes, true_latlon: ArrayLike, predicted_latlon: ArrayLike, gallery_latlon: ArrayLike
) -> None:
    """Draw the queries on the world (Equal Earth projection), coloured by how far off their prediction is.

    Args:
        ax: matplotlib Axes; its figure gets a colour bar beside it.
        true_latlon: (n, 2) latitude and longitude in degrees, where the points stand.
        predicted_latlon: (n, 2) predicted degrees.
        gallery_latlon: (m, 2) degrees; grey dots that stand in for land.

    Raises:
        ValueError: places as in `great_circle_km`.
    """
    error_km = great_circle_km(predicted_latlon, true_latlon)
    gallery = np.asarray(gallery_latlon, dtype=np.float64)
    check_latlon(gallery, "gallery_latlon")
    worst_last = np.argsort(error_km)
    for degrees in range(-60, 90, 30):
        _world_line(ax, np.full(2, degrees), np.array([-180, 180]))
    for degrees in range(-180, 181, 60):
        _world_line(ax, np.linspace(-60, 85, 100), np.full(100, degrees))
    ax.plot(*_plane(gallery).T, ".", color=LAND, markersize=1.5, mew=0, rasterized=True, zorder=1)
    x, y = _plane(true_latlon)[worst_last].T
    points = ax.scatter(
        x,
        y,
        c=np.maximum(error_km[worst_last], 1),
        norm=LogNorm(1, 10_000),
        cmap=_ERROR,
        s=9,
        linewidths=0,
        rasterized=True,
        zorder=2,
    )
    # nobody geotags the inner Antarctic; leaving it out gives the rest a fifth more room
    west, south, east, north = _plane([[0, -180], [-58, 0], [0, 180], [84, 0]])
    ax.set_xlim(west[0], east[0])
    ax.set_ylim(south[1], north[1])
    ax.set_aspect("equal")
    ax.axis("off")
    bar = ax.figure.colorbar(points, ax=ax, shrink=0.8, aspect=28, pad=0.015, extend="both")
    bar.set_ticks([1, 10, 100, 1_000, 10_000])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda km, _: f"{km:,.0f} km"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("error")


def plot_error_distribution(ax: Axes, error_km: Mapping[str, ArrayLike]) -> None:
    """Draw the share of queries whose error is at most x km, one curve per run.

    Args:
        ax: matplotlib Axes.
        error_km: run name to (n,) errors in km.

    Raises:
        ValueError: errors that are empty or not finite.
    """
    share = np.linspace(0, 1, 1001)
    for run, color in run_colors(error_km).items():
        errors = _column(f"error_km of {run}", error_km[run])
        quantiles = np.quantile(errors, share, method="inverted_cdf")
        ax.plot(np.maximum(quantiles, _SHORTEST_KM), share, color=color, linewidth=2, label=run)
    for threshold in THRESHOLDS_KM:
        ax.axvline(threshold, color=MARKS, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        ax.text(
            threshold,
            1.02,
            f"{threshold:,}",
            ha="center",
            color=MARKS,
            fontsize="small",
            transform=ax.get_xaxis_transform(),
        )
    ax.set_xscale("log")
    ax.set_xlim(_SHORTEST_KM, _HALF_EARTH_KM)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _distance_axis(ax, "error at most, km")
    ax.set_ylabel("share of queries")


def run_colors(runs: Iterable[str]) -> dict[str, str]:
    """The colour of each run in every figure, in the order given."""
    return {run: RUN_COLORS[k % len(RUN_COLORS)] for k, run in enumerate(runs)}


def _column(name: str, values: ArrayLike, length: int | None = None) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or len(column) == 0 or length not in (None, len(column)):
        raise ValueError(f"{name}: wanted shape ({'n' if length is None else length},), got {column.shape}")
    if not np.isfinite(column).all():
        raise ValueError(f"{name}: wanted finite numbers, got {column[~np.isfinite(column)][0]}")
    return column


def _running_mean(value: NDArray[np.float64], half_width: int) -> NDArray[np.float64]:
    """Centred mean over up to 2·half_width + 1 values; towards the ends as wide as both sides allow."""
    total = np.concatenate([[0.0], np.cumsum(value)])
    place = np.arange(len(value))
    reach = np.minimum(half_width, np.minimum(place, place[::-1]))
    mean: NDArray[np.float64] = (total[place + reach + 1] - total[place - reach]) / (2 * reach + 1)
    return mean


def _plane(latlon: Any) -> NDArray[np.float64]:
    projected: NDArray[np.float64] = equal_earth(
        torch.as_tensor(np.asarray(latlon, dtype=np.float64))
    ).numpy()
    return projected


def _world_line(ax: Axes, latitude: NDArray[Any], longitude: NDArray[Any]) -> None:
    ax.plot(
        *_plane(np.stack([latitude, longitude], axis=1)).T, color=MARKS, linewidth=0.4, alpha=0.45, zorder=0
    )


def _distance_axis(ax: Axes, label: str) -> None:
    ax.set_xlabel(label)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda km, _: f"{km:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _region(ax: Axes, x: float, align: str, color: str, *lines: str) -> None:
    # one text per line: SVG would align the lines of a block by another font's widths
    for k, line in enumerate(lines):
        ax.text(
            x, 0.97 - 0.05 * k, line, color=color, weight="bold", ha=align, va="top", transform=ax.transAxes
        )
