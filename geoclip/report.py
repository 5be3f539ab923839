"""The report of an experiment: one HTML page with its numbers and figures that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from geoclip.figures import (
    plot_curves,
    plot_error_distribution,
    plot_error_map,
    plot_surprise,
    run_colors,
)
from geoclip.metrics import Metrics, great_circle_km
from geoclip.page import digits, entries, plain, section, svg_figure, write_page
from semivario_kernels.variogram_plot import plot_variogram

if TYPE_CHECKING:
    from semivario_kernels import EmpiricalVariogram, VariogramFit

FRACTIONS = {
    "within_1_km": ("within 1 km", "street"),
    "within_25_km": ("within 25 km", "city"),
    "within_200_km": ("within 200 km", "region"),
    "within_750_km": ("within 750 km", "country"),
    "within_2500_km": ("within 2,500 km", "continent"),
}
ROWS = {
    **FRACTIONS,
    "median_km": ("median error", "half are nearer"),
    "mean_km": ("mean error", ""),
    "geoscore": ("GeoScore", "of 5,000"),
}
_HEADLINES = ("within_1_km", "within_25_km", "within_200_km", "median_km", "geoscore")
_LOWER_IS_BETTER = ("median_km", "mean_km")

TABLE_TEXT = "Small: 95 % intervals over the places."
_DIFFERENCE_TEXT = (
    "A difference is paired, both runs on the same places in every resample; it is bold where its interval "
    "excludes 0."
)
_VARIOGRAM_TEXT = (
    "How unlike two images are on average, by the distance between them; a larger point stands for more "
    "pairs, which the bars count. Look for the climb: where it has flattened, nearness no longer explains "
    "likeness."
)
_SURPRISE_TEXT = (
    "How the pairs at each distance spread; darker is more of them. Above the line a pair is more alike "
    "than its distance explains: far pairs up there are the negatives to learn from, near pairs are alike"
    " because they are near and should not be pushed apart."
)
_CURVES_TEXT = (
    "Running means. Look for a curve that still falls at the end: more steps "
    "would help. Policies weigh negatives differently, so compare the shapes of their losses, not the "
    "heights."
)
DISTRIBUTION_TEXT = (
    "Share of the held-out places found within a distance. Look for the curve that runs higher and "
    "further left; the dashed lines are the thresholds of the table."
)
MAP_TEXT = (
    "Every held-out place, coloured by how far away it was predicted; grey dots are the gallery. Look for"
    " warm clusters: regions whose places are taken for places elsewhere."
)


def write_report(
    path: str | Path,
    *,
    title: str,
    note: str,
    variogram: EmpiricalVariogram,
    fit: VariogramFit,
    curves: Mapping[str, Mapping[str, ArrayLike]],
    metrics: Mapping[str, Metrics],
    comparison: Metrics | None,
    true_latlon: ArrayLike,
    predicted: Mapping[str, ArrayLike],
    gallery_latlon: ArrayLike,
    pairs: Mapping[str, ArrayLike],
    hyperparameters: Mapping[str, object] | None = None,
    timing: Mapping[str, float] | None = None,
) -> Path:
    """Write the report of one or several runs on the same queries.

    The page has inline styles and figures, no script and no link to elsewhere; it follows the reader's
    light or dark scheme and prints in light. The same arguments give the same bytes.

    Args:
        path: the HTML file; missing folders are made.
        title: heading of the page.
        note: the line under the title: what the reader must know before any number.
        variogram: what `binned_semivariance` returned.
        fit: what `fit_variogram` returned for it.
        curves: run name to columns of one length: "step", "loss" and whatever else was recorded; empty
            leaves the figure out.
        metrics: run name to what `geolocation_metrics` returned. The first run is the baseline, the last
            the one the headline speaks of; these names and this order hold for the whole page.
        comparison: what `compare_metrics` returned for (first run, last run); None leaves the column out.
        true_latlon: (n, 2) true degrees of the queries.
        predicted: run name to (n, 2) predicted degrees, the runs of `metrics`.
        gallery_latlon: (m, 2) degrees of the gallery.
        pairs: "h_km", "d", "gamma": distance, dissimilarity and γ(distance) of a sample of pairs.
        hyperparameters: what the runs were made with, shown as it comes.
        timing: name of a stage to its seconds.

    Returns:
        The path written.

    Raises:
        ValueError: no run, runs of `predicted` or `curves` that `metrics` does not have, a missing metric,
            curve or pair column, or arrays that do not fit together.
        OSError: the file cannot be written.
    """
    _check(metrics, comparison, curves, predicted, true_latlon, pairs)
    runs = list(metrics)
    errors_km = {run: great_circle_km(predicted[run], true_latlon) for run in runs}
    curves = {run: curves[run] for run in runs if run in curves}
    range_km = fit.model.range_km()

    def variogram_figure(figure: Figure) -> None:
        plot_variogram(variogram, fit.model, figure.add_subplot())

    def surprise_figure(figure: Figure) -> None:
        plot_surprise(figure.add_subplot(), pairs["h_km"], pairs["d"], pairs["gamma"], range_km)

    def curves_figure(figure: Figure) -> None:
        others = sorted({key for columns in curves.values() for key in columns} - {"step", "loss"})
        rows = (len(others) + 1) // 2
        grid = figure.add_gridspec(1 + rows, 2, height_ratios=[2.2] + [1] * rows)
        loss = figure.add_subplot(grid[0, :])
        plot_curves(loss, curves)
        loss.legend(loc="upper right")
        for k, key in enumerate(others):
            plot_curves(figure.add_subplot(grid[1 + k // 2, k % 2]), curves, key)

    def distribution_figure(figure: Figure) -> None:
        ax = figure.add_subplot()
        plot_error_distribution(ax, errors_km)
        ax.legend(loc="lower right")

    def map_figure(figure: Figure) -> None:
        plot_error_map(figure.add_subplot(), true_latlon, predicted[runs[-1]], gallery_latlon)

    half, whole = (5.4, 4.2), (11, 4.3)
    queries, gallery = len(errors_km[runs[0]]), len(np.asarray(gallery_latlon))
    sections = [
        headline(metrics, comparison, queries, gallery),
        section(
            f"Accuracy on {queries:,} held-out places",
            metrics_table(metrics, comparison),
            f"{TABLE_TEXT} {_DIFFERENCE_TEXT if comparison else ''}",
        ),
        '<div class="two">',
        section(
            "Semivariogram",
            svg_figure("semivariogram", variogram_figure, half),
            f"{_VARIOGRAM_TEXT} {_fit_sentence(fit, range_km)}",
        ),
        section(
            "Surprise against distance",
            svg_figure("surprise against distance", surprise_figure, half),
            _SURPRISE_TEXT,
        ),
        section("Training", svg_figure("training curves", curves_figure, half), _CURVES_TEXT)
        if curves
        else "",
        section(
            "Error distribution",
            svg_figure("error distribution", distribution_figure, half),
            DISTRIBUTION_TEXT,
        ),
        "</div>",
        section(f"Errors on the map: {runs[-1]}", svg_figure("map of errors", map_figure, whole), MAP_TEXT),
        _settings(hyperparameters or {}, timing or {}),
    ]
    return write_page(path, title, note, sections)


def _check(
    metrics: Mapping[str, Metrics],
    comparison: Metrics | None,
    curves: Mapping[str, Mapping[str, ArrayLike]],
    predicted: Mapping[str, ArrayLike],
    true_latlon: ArrayLike,
    pairs: Mapping[str, ArrayLike],
) -> None:
    if not metrics:
        raise ValueError("metrics: wanted at least one run, got none")
    if set(predicted) != set(metrics):
        raise ValueError(f"predicted: wanted the runs of metrics {sorted(metrics)}, got {sorted(predicted)}")
    for run, latlon in predicted.items():
        if np.shape(latlon) != np.shape(true_latlon):
            raise ValueError(
                f"predicted of {run}: wanted the shape of true_latlon {np.shape(true_latlon)}, "
                f"got {np.shape(latlon)}"
            )
    if not set(curves) <= set(metrics):
        raise ValueError(f"curves: wanted runs of metrics {sorted(metrics)}, got {sorted(curves)}")
    wanted_of = {
        **{f"metrics of {run}": (tuple(ROWS), columns) for run, columns in metrics.items()},
        **({"comparison": (tuple(ROWS), comparison)} if comparison is not None else {}),
        **{f"curves of {run}": (("step", "loss"), columns) for run, columns in curves.items()},
        "pairs": (("h_km", "d", "gamma"), pairs),
    }
    for name, (wanted, columns) in wanted_of.items():
        missing = [key for key in wanted if key not in columns]
        if missing:
            raise ValueError(f"{name}: wanted {', '.join(wanted)}, missing {', '.join(missing)}")


def headline(metrics: Mapping[str, Metrics], comparison: Metrics | None, queries: int, gallery: int) -> str:
    """The last run's main numbers on cards, beside the first run's where there are two."""
    first, last = next(iter(metrics)), list(metrics)[-1]
    cards = []
    for key in _HEADLINES:
        card = f"<span>{ROWS[key][0]}</span><b>{metric_cell(key, metrics[last][key])[0]}</b>"
        if first != last:
            card += f"<span>{escape(first)}: {metric_cell(key, metrics[first][key])[0]}</span>"
        if comparison:
            difference = metric_cell(key, comparison[key], signed=True)[0]
            card += f'<span class="{_verdict(key, comparison[key])}">{difference}</span>'
        cards.append(f"<div>{card}</div>")
    return (
        f"<p><b>{escape(last)}</b> on {queries:,} held-out places, each looked up among {gallery:,} gallery "
        f'places:</p><div class="cards">{"".join(cards)}</div>'
    )


def metrics_table(metrics: Mapping[str, Metrics], comparison: Metrics | None = None) -> str:
    """Every metric with its interval, a column per run."""
    runs, colors = list(metrics), run_colors(metrics)
    head = "".join(f'<th><i style="background:{colors[run]}"></i>{escape(run)}</th>' for run in runs)
    if comparison:
        head += "<th>difference, last − first</th>"
    rows = []
    for key, (name, gloss) in ROWS.items():
        row = f"<th>{name}<small>{gloss}</small></th>"
        for run in runs:
            value, interval = metric_cell(key, metrics[run][key])
            row += f"<td>{value}<small>{interval}</small></td>"
        if comparison:
            value, interval = metric_cell(key, comparison[key], signed=True)
            verdict = _verdict(key, comparison[key])
            value = f'<b class="{verdict}">{value}</b>' if verdict else value
            row += f"<td>{value}<small>{interval}</small></td>"
        rows.append(f"<tr>{row}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _verdict(key: str, difference: Mapping[str, float]) -> str:
    """Return "better" or "worse" where the interval excludes 0, nothing elsewhere."""
    if difference["low"] <= 0 <= difference["high"]:
        return ""
    return "better" if (difference["low"] > 0) != (key in _LOWER_IS_BETTER) else "worse"


def metric_cell(key: str, entry: Mapping[str, float], *, signed: bool = False) -> tuple[str, str]:
    """The value with its unit, and the interval, written to the same digit."""
    numbers = [entry["value"], entry["low"], entry["high"]]
    if key in FRACTIONS:
        numbers, decimals, unit = [100 * number for number in numbers], 1, " points" if signed else " %"
    elif key == "geoscore":
        decimals, unit = 0, ""
    else:
        largest = max(abs(number) for number in numbers)
        decimals, unit = 2 if largest < 10 else 1 if largest < 100 else 0, " km"
    value, low, high = (digits(number, decimals, signed) for number in numbers)
    return value + unit, f"{low} to {high}"


def _fit_sentence(fit: VariogramFit, range_km: float) -> str:
    model = fit.model
    if not fit.resolvable:
        return f"These pairs do not tell a range: {fit.note}."
    kind = model.kind if isinstance(model.kind, str) else "nested"
    return (
        f"The line is the fitted {kind} model (weighted R² {fit.r2:.3f}): from a nugget of "
        f"{model.nugget:.3f} it has come 95 % of the way to its sill of {model.sill:.3f} at "
        f"{range_km:,.0f} km."
    )


def _settings(hyperparameters: Mapping[str, object], timing: Mapping[str, float]) -> str:
    cards = {
        "Settings": {name: plain(value) for name, value in hyperparameters.items()},
        "Time": {name: _seconds(value) for name, value in timing.items()},
    }
    return "\n".join(entries(heading, values) for heading, values in cards.items() if values)


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
