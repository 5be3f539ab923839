"""The picture of a semivariogram: points, fitted curve, nugget, sill, range, and the pairs behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from semivario_kernels.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from semivario_kernels import EmpiricalVariogram, VariogramModel
    from semivario_kernels.bootstrap import FitDraws, VariogramDraws

POINTS = "#2f6fb0"
CURVE = "#d9622b"
MARKS = "#6f7a87"
HALF_EARTH_KM = math.pi * 6371.0088

Scale = Literal["log", "linear"]


def plot_variogram(
    empirical: EmpiricalVariogram | None,
    model: VariogramModel | None = None,
    ax: Axes | None = None,
    *,
    scale: Scale = "log",
    draws: VariogramDraws | FitDraws | None = None,
) -> Axes:
    """Draw γ against distance.

    Empirical points grow with their number of pairs, which a strip of bars beneath the axes counts. The
    model is a curve with nugget, sill and the range (95 % of the way to the sill) marked.

    Args:
        empirical: what `binned_semivariance` returned; None draws the model alone.
        model: the fitted model; None draws the points alone.
        ax: matplotlib Axes to draw into; None makes a new pyplot figure.
        scale: "log", which shows every lag, or "linear", which starts at 0 km and ends at four ranges.
        draws: bootstrap draws of `empirical`, whose 95 % bands become bars at the points; draws of a fit
            shade the band of the curve, too.

    Returns:
        The Axes drawn into; the strip of counts is its child.

    Raises:
        ImportError: matplotlib is not installed; names the extra that brings it.
        ValueError: neither an empirical variogram nor a model, no bin holds a pair at a distance above 0, or
            draws of another number of bins.
    """
    import_matplotlib()
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if empirical is None and model is None:
        raise ValueError("empirical, model: wanted at least one of them, got None for both")
    ax = ax or _new_axes()
    first_km, last_km = _lag_limits(empirical, model)
    if scale == "linear" and model is not None:
        last_km = min(last_km, max(4 * model.range_km(), 2 * first_km))
    ax.set_xscale(scale)
    ax.set_xlim(first_km if scale == "log" else 0, last_km)
    top = 0.0
    lowest_axes = ax
    if model is not None:
        _draw_model(ax, model, first_km, last_km, scale)
        top = float(model(last_km))
    if empirical is not None:
        filled = empirical.counts > 0
        gamma, counts = empirical.gamma[filled], empirical.counts[filled]
        # the area follows the square root: pairs span six decades, and 30 of them must still be seen
        ax.scatter(
            empirical.lag_km[filled],
            gamma,
            s=16 + 110 * np.sqrt(counts / counts.max()),
            color=POINTS,
            alpha=0.85,
            linewidths=0,
            zorder=3,
            label="empirical",
        )
        top = max(top, float(gamma.max()))
        lowest_axes = _draw_counts(ax, empirical, first_km if scale == "log" else 0.0)
        if draws is not None:
            top = max(top, _draw_bands(ax, empirical, draws, first_km, last_km))
    ax.set_ylim(0, 1.15 * top if top > 0 else 1)
    ax.set_ylabel("semivariogram γ")
    lowest_axes.set_xlabel("distance, km")
    lowest_axes.xaxis.set_major_formatter(FuncFormatter(lambda km, _: f"{km:,g}"))
    lowest_axes.xaxis.set_minor_formatter(NullFormatter())
    return ax


def import_matplotlib() -> None:
    """Import matplotlib, naming the extra that brings it where it is missing."""
    try:
        import matplotlib.ticker  # noqa: F401
    except ImportError as error:
        message = f"matplotlib is not installed; it comes with: {install_command('variogram')}"
        raise ImportError(message) from error


def variogram_figure(
    empirical: EmpiricalVariogram,
    model: VariogramModel | None = None,
    draws: VariogramDraws | FitDraws | None = None,
) -> Figure:
    """Draw `plot_variogram` twice into a new figure: the lag on a logarithmic and on a linear axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 5), layout="constrained")
    scales: tuple[Scale, Scale] = ("log", "linear")
    for ax, scale in zip(figure.subplots(1, 2), scales, strict=True):
        plot_variogram(empirical, model, ax, scale=scale, draws=draws)
    return figure


def plot_groups(variograms: Mapping[Any, EmpiricalVariogram], ax: Axes | None = None) -> Axes:
    """Draw one line per group of `grouped_semivariance`, on one logarithmic axis of distance.

    Args:
        variograms: semivariograms by label; bins at distance 0 are not drawn.
        ax: matplotlib Axes to draw into; None makes a new pyplot figure.

    Returns:
        The Axes drawn into.

    Raises:
        ImportError: matplotlib is not installed; names the extra that brings it.
        ValueError: no semivariogram, or one without a pair at a distance above 0.
    """
    import_matplotlib()
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if not variograms:
        raise ValueError("variograms: wanted at least one, got none")
    ax = ax or _new_axes()
    limits = [_lag_limits(empirical, None) for empirical in variograms.values()]
    colours = _group_colours(len(variograms))
    for (label, empirical), colour in zip(variograms.items(), colours, strict=True):
        drawn = (empirical.counts > 0) & (empirical.lag_km > 0)
        ax.plot(
            empirical.lag_km[drawn],
            empirical.gamma[drawn],
            color=colour,
            marker="o",
            markersize=3.5,
            linewidth=1.3,
            label=f"{label} ({_pairs(float(f'{empirical.counts.sum():.2g}'))} pairs)",
        )
    ax.set_xscale("log")
    ax.set_xlim(min(first for first, _ in limits), max(last for _, last in limits))
    ax.set_ylim(bottom=0)
    ax.set_ylabel("semivariogram γ")
    ax.set_xlabel("distance, km")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda km, _: f"{km:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize="small", frameon=False, ncols=1 + len(variograms) // 10)
    return ax


def _group_colours(groups: int) -> list[Any]:
    """Ten colours that are easy to tell apart, or as many as there are groups along a colour map."""
    from matplotlib import colormaps

    if groups <= 10:
        return [colormaps["tab10"](k) for k in range(groups)]
    return [colormaps["turbo"](k / (groups - 1)) for k in range(groups)]


def _new_axes() -> Axes:
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7, 5), layout="constrained")[1]


def _draw_bands(
    ax: Axes,
    empirical: EmpiricalVariogram,
    draws: VariogramDraws | FitDraws,
    first_km: float,
    last_km: float,
) -> float:
    """Draw bars at the points and, for a fit, shade around the curve; return the highest γ drawn."""
    from semivario_kernels.bootstrap import FitDraws

    if isinstance(draws, FitDraws):
        h_km = np.geomspace(first_km, last_km, 400)
        low, high = draws.band(h_km)
        ax.fill_between(h_km, low, high, color=CURVE, alpha=0.2, linewidth=0, zorder=1.5)
        draws = draws.variogram
    low, high = draws.band()
    if low.shape != empirical.gamma.shape:
        raise ValueError(f"draws: wanted draws of {len(empirical.gamma)} bins, got {len(low)}")
    known = np.isfinite(low) & np.isfinite(high)
    lag_km = empirical.lag_km[known]
    ax.vlines(lag_km, low[known], high[known], color=POINTS, linewidth=1.2, alpha=0.7, zorder=2.5)
    return float(high[known].max(initial=0.0))


def _lag_limits(empirical: EmpiricalVariogram | None, model: VariogramModel | None) -> tuple[float, float]:
    if empirical is None:
        assert model is not None
        middle = min(model.range_km(), HALF_EARTH_KM)
        return middle / 300, min(30 * middle, HALF_EARTH_KM)
    edges, lag = empirical.edges_km, empirical.lag_km
    drawn = (empirical.counts > 0) & (lag > 0)
    if not drawn.any():
        raise ValueError("empirical: wanted a bin with pairs at a distance above 0 km, got none")
    # the first bin often starts at 0, which a logarithmic axis does not have
    first_km = edges[:-1][drawn].min() or min(lag[drawn].min() / 1.6, edges[1] / 2)
    return float(first_km), float(edges[1:][drawn].max())


def _draw_model(ax: Axes, model: VariogramModel, first_km: float, last_km: float, scale: Scale) -> None:
    h_km = np.geomspace(first_km, last_km, 400)
    if scale == "linear":
        h_km = np.union1d(h_km, np.linspace(0, last_km, 401))
    ax.plot(h_km, model(h_km), color=CURVE, linewidth=2, zorder=2, label=f"fitted: {_kind(model)}")
    dashed: dict[str, Any] = {"color": MARKS, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}
    text: dict[str, Any] = {"color": MARKS, "fontsize": "small"}
    # γ is low at the left and high at the right, so each label stands where the points do not
    for name, level, x, side in (
        ("sill", model.sill, 0.012, "left"),
        ("nugget", model.nugget, 0.988, "right"),
    ):
        ax.axhline(level, **dashed)
        # a sill far above what is drawn takes no room
        place: dict[str, Any] = {
            "ha": side,
            "va": "bottom",
            "transform": ax.get_yaxis_transform(),
            "clip_on": True,
        }
        ax.text(x, level, f"{name} {level:.3f}", **place, **text)
    range_km = model.range_km()
    middle_km = math.sqrt(first_km * last_km) if scale == "log" else last_km / 2
    if first_km < range_km < last_km:
        ax.axvline(range_km, **dashed)
        height = 0.08 if abs(model.nugget / model.sill - 0.1) > 0.06 else 0.2  # clear of the nugget's line
        ax.text(
            range_km,
            height,
            f" range {_km(range_km)} ",
            ha="left" if range_km < middle_km else "right",
            transform=ax.get_xaxis_transform(),
            **text,
        )


def _draw_counts(ax: Axes, empirical: EmpiricalVariogram, first_km: float) -> Axes:
    """Hang a strip of bars beneath the axes; it carries the distance labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    strip = ax.inset_axes((0, -0.27, 1, 0.2), sharex=ax)
    counts = empirical.counts
    strip.stairs(
        counts, np.maximum(empirical.edges_km, first_km), baseline=0.5, fill=True, color=POINTS, alpha=0.45
    )
    strip.set_yscale("log")
    strip.set_ylim(0.5, 3 * counts.max())
    strip.yaxis.set_major_locator(LogLocator(base=1000))
    strip.yaxis.set_minor_locator(NullLocator())
    strip.yaxis.set_major_formatter(FuncFormatter(lambda pairs, _: _pairs(pairs)))
    strip.set_ylabel("pairs")
    ax.tick_params(axis="x", which="both", labelbottom=False)
    return strip


def _kind(model: VariogramModel) -> str:
    return model.kind if isinstance(model.kind, str) else " + ".join(model.kind)


def _km(km: float) -> str:
    return f"{km:,.0f} km" if km >= 10 else f"{km:.2g} km"


def _pairs(pairs: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if pairs >= size:
            return f"{pairs / size:g}{unit}"
    return f"{pairs:g}"
