"""The report of an evaluation: one HTML page with its numbers and figures that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from geoclip.evaluation import Placed
from geoclip.figures import plot_error_distribution, plot_error_map
from geoclip.metrics import great_circle_km
from geoclip.page import digits, entries, section, svg_figure, write_page
from geoclip.report import DISTRIBUTION_TEXT, MAP_TEXT, TABLE_TEXT, headline, metric_cell, metrics_table

_NAMES = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "recall_at_10": "R@10",
    "recall_at_1_percent": "R@1 %",
    "country": "country",
    "region": "region",
    "sub_region": "sub-region",
    "city": "city",
}
_RECALL_TEXT = (
    "How often the gallery's place nearest to the truth is among the first k, or the first hundredth, of all "
    "places."
)
_COUNTRY_COLUMNS = {
    "within_25_km": "within 25 km",
    "within_200_km": "within 200 km",
    "within_750_km": "within 750 km",
    "median_km": "median error",
    "geoscore": "GeoScore",
}


def write_evaluation_report(
    path: str | Path, result: Mapping[str, Any], placed: Placed, gallery: ArrayLike
) -> Path:
    """Write the page.

    Args:
        path: the HTML file; missing folders are made.
        result: what `geoclip eval` writes as JSON.
        placed: the photos.
        gallery: (M, 2) degrees; stands in for land on the map.

    Raises:
        OSError: the file cannot be written.
    """
    run = str(result["checkpoint"])
    error_km = {run: great_circle_km(placed.latlon, placed.true_latlon)}
    metrics = {run: result["metrics"]}

    def distribution(figure: Figure) -> None:
        plot_error_distribution(figure.add_subplot(), error_km)

    def world(figure: Figure) -> None:
        plot_error_map(figure.add_subplot(), placed.true_latlon, placed.latlon, gallery)

    sections = [
        headline(metrics, None, result["photos"], result["places"]),
        section(f"Accuracy on {result['photos']:,} photos", metrics_table(metrics), TABLE_TEXT),
        section("Errors on the map", svg_figure("map of errors", world, (11, 4.3)), MAP_TEXT),
        '<div class="two">',
        section(
            "Error distribution",
            svg_figure("error distribution", distribution, (5.4, 4.2)),
            DISTRIBUTION_TEXT,
        ),
        section("Recall in the gallery", _shares(result["recall"]), _RECALL_TEXT),
        "</div>",
        _areas(result["areas"]),
        _countries(result["countries"]),
        entries(
            "What was evaluated",
            {
                name: str(result[name])
                for name in ("checkpoint", "weights", "test", "gallery", "variogram", "logit_scale")
                if result[name] is not None
            },
        ),
    ]
    return write_page(path, "GeoCLIP: evaluation", f"{run} on {result['test']}", sections)


def _shares(metrics: Mapping[str, Mapping[str, float]], photos: Mapping[str, int] | None = None) -> str:
    rows = []
    for key, entry in metrics.items():
        value, low, high = (digits(100 * entry[of], 1) for of in ("value", "low", "high"))
        gloss = "" if photos is None else f"<small>{photos[key]:,} photos</small>"
        rows.append(f"<tr><th>{_NAMES[key]}{gloss}</th><td>{value} %<small>{low} to {high}</small></td></tr>")
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _areas(areas: Mapping[str, Any]) -> str:
    if "accuracy" not in areas:
        return section("Administrative areas", "", f"Not measured: {areas['why_not']}.")
    median, p95 = (digits(areas["label_distance_km"][of], 1) for of in ("median", "p95"))
    return section(
        "Administrative areas",
        _shares(areas["accuracy"], areas["photos"]),
        f"Of the labelled place in {areas['labels']} nearest to the prediction: half of them lie within "
        f"{median} km of it, 95 % within {p95} km.",
    )


def _countries(countries: list[dict[str, Any]]) -> str:
    if not countries:
        return ""
    head = "".join(f"<th>{name}</th>" for name in _COUNTRY_COLUMNS.values())
    rows = []
    for row in countries:
        cells = [metric_cell(key, row["metrics"][key]) for key in _COUNTRY_COLUMNS]
        values = "".join(f"<td>{value}<small>{interval}</small></td>" for value, interval in cells)
        rows.append(
            f"<tr><th>{escape(row['country'])}<small>{row['photos']:,} photos</small></th>{values}</tr>"
        )
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return section(
        f"{len(countries):,} countries",
        f'<div class="scroll"><table>{table}</table></div>',
        "By the true country, the one with the most photos first. Small: 95 % intervals.",
    )
