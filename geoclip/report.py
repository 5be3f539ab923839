"""The report of an experiment: one HTML page with its numbers and figures that needs no other file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
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
from semivario_kernels.atomic import write_atomically
from semivario_kernels.variogram_plot import MARKS, plot_variogram

if TYPE_CHECKING:
    from semivario_kernels import EmpiricalVariogram, VariogramFit

# These and MARKS become CSS variables in the page, so that the figures follow its light or dark scheme.
_INK, _CARD = "#1c2430", "#fdfdfe"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": MARKS,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": MARKS,
    "ytick.color": MARKS,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.facecolor": _CARD,
    "legend.edgecolor": "none",
    "legend.framealpha": 1,
    "savefig.dpi": 200,
}

_FRACTIONS = {
    "within_1_km": ("within 1 km", "street"),
    "within_25_km": ("within 25 km", "city"),
    "within_200_km": ("within 200 km", "region"),
    "within_750_km": ("within 750 km", "country"),
    "within_2500_km": ("within 2,500 km", "continent"),
}
_ROWS = {
    **_FRACTIONS,
    "median_km": ("median error", "half are nearer"),
    "mean_km": ("mean error", ""),
    "geoscore": ("GeoScore", "of 5,000"),
}
_HEADLINES = ("within_1_km", "within_25_km", "within_200_km", "median_km", "geoscore")
_LOWER_IS_BETTER = ("median_km", "mean_km")

_TABLE_TEXT = "Small: 95 % bootstrap intervals over the places."
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
_DISTRIBUTION_TEXT = (
    "Share of the held-out places found within a distance. Look for the curve that runs higher and "
    "further left; the dashed lines are the thresholds of the table."
)
_MAP_TEXT = (
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
        _headline(metrics, comparison, queries, gallery),
        _section(
            f"Accuracy on {queries:,} held-out places",
            _table(metrics, comparison),
            f"{_TABLE_TEXT} {_DIFFERENCE_TEXT if comparison else ''}",
        ),
        '<div class="two">',
        _section(
            "Semivariogram",
            _svg("semivariogram", variogram_figure, half),
            f"{_VARIOGRAM_TEXT} {_fit_sentence(fit, range_km)}",
        ),
        _section(
            "Surprise against distance",
            _svg("surprise against distance", surprise_figure, half),
            _SURPRISE_TEXT,
        ),
        _section("Training", _svg("training curves", curves_figure, half), _CURVES_TEXT) if curves else "",
        _section(
            "Error distribution", _svg("error distribution", distribution_figure, half), _DISTRIBUTION_TEXT
        ),
        "</div>",
        _section(f"Errors on the map: {runs[-1]}", _svg("map of errors", map_figure, whole), _MAP_TEXT),
        _settings(hyperparameters or {}, timing or {}),
    ]
    page = _PAGE.format(title=escape(title), note=escape(note), css=_CSS, body="\n".join(sections))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


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
        **{f"metrics of {run}": (tuple(_ROWS), columns) for run, columns in metrics.items()},
        **({"comparison": (tuple(_ROWS), comparison)} if comparison is not None else {}),
        **{f"curves of {run}": (("step", "loss"), columns) for run, columns in curves.items()},
        "pairs": (("h_km", "d", "gamma"), pairs),
    }
    for name, (wanted, columns) in wanted_of.items():
        missing = [key for key in wanted if key not in columns]
        if missing:
            raise ValueError(f"{name}: wanted {', '.join(wanted)}, missing {', '.join(missing)}")


def _svg(label: str, draw: Callable[[Figure], None], inches: tuple[float, float]) -> str:
    """The figure as an <svg> element that takes its colours and its font from the page."""
    buffer = io.StringIO()
    # the salt makes the ids of clip paths repeatable, and different from those of the page's other figures
    with mpl.rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_CARD, "var(--card)").replace(MARKS, "var(--marks)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _section(heading: str, content: str, explanation: str) -> str:
    return (
        f"<section><h2>{escape(heading)}</h2><figure>{content}"
        f"<figcaption>{escape(explanation)}</figcaption></figure></section>"
    )


def _headline(metrics: Mapping[str, Metrics], comparison: Metrics | None, queries: int, gallery: int) -> str:
    first, last = next(iter(metrics)), list(metrics)[-1]
    cards = []
    for key in _HEADLINES:
        card = f"<span>{_ROWS[key][0]}</span><b>{_cell(key, metrics[last][key])[0]}</b>"
        if first != last:
            card += f"<span>{escape(first)}: {_cell(key, metrics[first][key])[0]}</span>"
        if comparison:
            difference = _cell(key, comparison[key], signed=True)[0]
            card += f'<span class="{_verdict(key, comparison[key])}">{difference}</span>'
        cards.append(f"<div>{card}</div>")
    return (
        f"<p><b>{escape(last)}</b> on {queries:,} held-out places, each looked up among {gallery:,} gallery "
        f'places:</p><div class="cards">{"".join(cards)}</div>'
    )


def _table(metrics: Mapping[str, Metrics], comparison: Metrics | None) -> str:
    runs, colors = list(metrics), run_colors(metrics)
    head = "".join(f'<th><i style="background:{colors[run]}"></i>{escape(run)}</th>' for run in runs)
    if comparison:
        head += "<th>difference, last − first</th>"
    rows = []
    for key, (name, gloss) in _ROWS.items():
        row = f"<th>{name}<small>{gloss}</small></th>"
        for run in runs:
            value, interval = _cell(key, metrics[run][key])
            row += f"<td>{value}<small>{interval}</small></td>"
        if comparison:
            value, interval = _cell(key, comparison[key], signed=True)
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


def _cell(key: str, entry: Mapping[str, float], *, signed: bool = False) -> tuple[str, str]:
    """The value with its unit, and the interval, written to the same digit."""
    numbers = [entry["value"], entry["low"], entry["high"]]
    if key in _FRACTIONS:
        numbers, decimals, unit = [100 * number for number in numbers], 1, " points" if signed else " %"
    elif key == "geoscore":
        decimals, unit = 0, ""
    else:
        largest = max(abs(number) for number in numbers)
        decimals, unit = 2 if largest < 10 else 1 if largest < 100 else 0, " km"
    value, low, high = (_digits(number, decimals, signed) for number in numbers)
    return value + unit, f"{low} to {high}"


def _digits(number: float, decimals: int, signed: bool) -> str:
    text = f"{abs(number):,.{decimals}f}"
    if not text.strip("0."):
        return text
    return f"{'−' if number < 0 else '+' if signed else ''}{text}"


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
    lists = []
    for heading, entries in (
        ("Settings", {name: _plain(value) for name, value in hyperparameters.items()}),
        ("Time", {name: _seconds(value) for name, value in timing.items()}),
    ):
        if entries:
            rows = "".join(
                f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(value)}</dd></div>"
                for name, value in entries.items()
            )
            lists.append(f"<section><h2>{heading}</h2><dl>{rows}</dl></section>")
    return "\n".join(lists)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="note">{note}</p>
{body}
</main>
</body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --paper: #f4f6f8; --card: #ffffff; --ink: #1c2430; --soft: #5b6675;
  --marks: #77828f; --line: #dfe4ea; --better: #1b7f5c; --worse: #b3352b; --note: #fdf3dc;
  --note-line: #d9a52e; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --card: #1a2028; --ink: #e6eaf0;
  --soft: #a3adba; --marks: #8a95a3; --line: #2c3541; --better: #4cc398; --worse: #f0857b; --note: #2a2415;
  --note-line: #a8802a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 Inter, system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 28px 56px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 14px; }
h2 { font-size: 17px; letter-spacing: -0.01em; margin: 0 0 12px; }
.note { margin: 0 0 26px; padding: 10px 16px; border-radius: 4px;
  background: var(--note); border-left: 4px solid var(--note-line); }
.cards { display: grid; grid-template-columns: repeat(5, 1fr); gap: 14px; margin: 0 0 18px; }
.cards div, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.cards div { padding: 14px 16px; display: flex; flex-direction: column; }
.cards b { font-size: 27px; line-height: 1.35; letter-spacing: -0.02em; }
.cards span { font-size: 13px; color: var(--soft); }
section { padding: 20px 22px; margin: 0 0 18px; min-width: 0; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; margin: 0 0 18px; }
.two section { margin: 0; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
figcaption { margin-top: 10px; font-size: 13.5px; line-height: 1.5; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 0 8px 14px; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
tbody th { text-align: left; padding-left: 0; white-space: nowrap; }
td { white-space: nowrap; }
td small { display: inline-block; min-width: 108px; }
td:last-child small { min-width: 92px; }
thead th { color: var(--soft); font-size: 13.5px; }
thead i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 7px; }
small { color: var(--soft); font-size: 12.5px; margin-left: 9px; font-weight: 400; }
.cards .better, .better { color: var(--better); }
.cards .worse, .worse { color: var(--worse); }
dl { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 4px 28px; margin: 0;
  font-size: 13.5px; }
dl div { display: flex; justify-content: space-between; gap: 12px; border-bottom: 1px solid var(--line); }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
@media screen and (max-width: 860px) { .two, dl { grid-template-columns: minmax(0, 1fr); }
  .cards { grid-template-columns: 1fr 1fr; } }
@media print {
  :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #1c2430; --soft: #4b5563;
    --marks: #77828f; --line: #d5dae1; --better: #1b7f5c; --worse: #b3352b; --note: #fdf3dc;
    --note-line: #d9a52e; }
  body { zoom: 0.72; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { padding: 0; max-width: none; }
  section, .cards { break-inside: avoid; }
}
"""
