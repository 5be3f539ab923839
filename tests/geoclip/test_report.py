import re
from html.parser import HTMLParser

import numpy as np
import pytest

from geoclip.metrics import compare_metrics, geolocation_metrics
from geoclip.report import write_report
from semivario_kernels import (
    binned_semivariance,
    fit_variogram,
    log_edges_km,
    pairwise_haversine,
)

TITLE = "Demo <of> the loss"
NOTE = "No photo was used: the image embeddings are GeoCLIP's field at 100,000 coordinates & noise."
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Every element in order: its tag, its attributes and the text inside it."""

    def __init__(self, html):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(html)
        assert not self._open, f"never closed: {[element['tag'] for element in self._open]}"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            element
            for element in self.elements
            if element["tag"] == tag and all(element.get(k) == v for k, v in attributes.items())
        ]

    def texts(self, tag):
        return [element["text"] for element in self.all(tag)]


def cells(page):
    """The table as rows of the cells' texts."""
    rows, row = [], None
    for element in page.elements:
        if element["tag"] == "tr":
            rows.append(row := [])
        elif element["tag"] in ("th", "td"):
            row.append(element["text"])
    return rows


@pytest.fixture(scope="module")
def variogram():
    """The semivariogram of a field that is smooth over some 500 km, and its fit."""
    rng = np.random.default_rng(0)
    latlon = np.stack([rng.uniform(35, 60, 400), rng.uniform(-10, 30, 400)], axis=1)
    waves = rng.normal(size=(2, 48)) / 4
    phase = latlon @ waves
    field = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    empirical = binned_semivariance(field, latlon, edges_km=log_edges_km(50, 4000, 14))
    return empirical, fit_variogram(empirical, "exponential"), latlon, field


@pytest.fixture(scope="module")
def arguments(variogram):
    empirical, fit, latlon, field = variogram
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 400, (2, 3000))
    h_km = pairwise_haversine(latlon, latlon)[first, second]
    unit = field / np.linalg.norm(field, axis=1, keepdims=True)
    true = np.stack([rng.uniform(-50, 70, 300), rng.uniform(-180, 180, 300)], axis=1)
    offset = rng.normal(size=true.shape) * rng.lognormal(-2, 1.5, (300, 1)).clip(0, 4)
    predicted = {"InfoNCE": true + offset, "explained": true + 0.7 * offset}
    step = np.arange(1, 201)
    return {
        "title": TITLE,
        "note": NOTE,
        "variogram": empirical,
        "fit": fit,
        "curves": {
            run: {"step": step, "loss": 8 / step**0.3, "logit_scale": 14 + step / 10} for run in predicted
        },
        "metrics": {run: geolocation_metrics(places, true) for run, places in predicted.items()},
        "comparison": compare_metrics(predicted["InfoNCE"], predicted["explained"], true),
        "true_latlon": true,
        "predicted": predicted,
        "gallery_latlon": np.concatenate([true, np.clip(true + 3, -90, 90)]),
        "pairs": {
            "h_km": h_km,
            "d": 1 - (unit[first] * unit[second]).sum(axis=1),
            "gamma": fit.model(h_km),
        },
        "hyperparameters": {
            "batch_size": 4096,
            "learning_rate": 3e-4,
            "policy": "explained(hard=0)",
            "bf16": False,
        },
        "timing": {"training": 131.4, "evaluation": 8.14, "embedding": 7322.0},
    }


@pytest.fixture(scope="module")
def html(arguments, tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("runs") / "demo" / "report.html", **arguments)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def entry(value, low, high):
    return {"value": value, "low": low, "high": high}


METRICS = {
    "within_1_km": entry(0.3126, 0.2981, 0.3272),
    "within_25_km": entry(0.7, 0.68, 0.72),
    "within_200_km": entry(0.9, 0.89, 0.91),
    "within_750_km": entry(0.95, 0.94, 0.96),
    "within_2500_km": entry(1.0, 0.99, 1.0),
    "median_km": entry(3.04, 2.8, 12.345),
    "mean_km": entry(1234.5, 180.2, 2262.7),
    "geoscore": entry(4757.4, 4729.2, 4783.0),
}
DIFFERENCES = {
    "within_1_km": entry(0.0318, 0.0205, 0.0443),
    "within_25_km": entry(0.0042, -0.0051, 0.0129),
    "within_200_km": entry(-0.0251, -0.031, -0.012),
    "within_750_km": entry(0.00004, -0.001, 0.001),
    "within_2500_km": entry(0.0, 0.0, 0.0),
    "median_km": entry(-0.58, -0.82, -0.34),
    "mean_km": entry(2.31, 1.2, 41.9),
    "geoscore": entry(13.4, -21.9, 49.6),
}


# --- the page as a whole ---


def test_the_page_needs_nothing_beside_itself(html, page):
    for tag in ("script", "link", "iframe", "object", "img"):
        assert not page.all(tag)
    for element in page.elements:
        for attribute in ("src", "href", "xlink:href"):
            reference = element.get(attribute)
            assert reference is None or reference.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(html) < 3_000_000


def test_ids_are_unique_and_every_reference_has_its_target(html, page):
    ids = [element["id"] for element in page.elements if "id" in element]
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", html))
    assert used <= set(ids)
    assert len(set(ids) & used) == len([one for one in ids if one in used])


def test_the_note_is_the_first_line_under_the_title(page):
    tags = [element["tag"] for element in page.elements]
    after_title = page.elements[tags.index("h1") + 1]
    assert page.texts("h1") == [TITLE]
    assert page.texts("title") == [TITLE]
    assert (after_title["tag"], after_title["text"]) == ("p", NOTE)


def test_every_section_is_there_each_figure_with_a_sentence_that_says_what_to_look_for(page):
    assert page.texts("h2") == [
        "Accuracy on 300 held-out places",
        "Semivariogram",
        "Surprise against distance",
        "Training",
        "Error distribution",
        "Errors on the map: explained",
        "Settings",
        "Time",
    ]
    figures = page.all("svg", role="img")
    assert [figure["aria-label"] for figure in figures] == [
        "semivariogram",
        "surprise against distance",
        "training curves",
        "error distribution",
        "map of errors",
    ]
    captions = page.texts("figcaption")
    assert len(captions) == 6
    assert all(len(caption) > 40 for caption in captions)
    drawn = [figure["text"] for figure in figures]
    assert "pairs" in drawn[0]
    assert "sill" in drawn[0]
    assert "hard negatives" in drawn[1]
    assert "false negatives" in drawn[1]
    assert "logit scale" in drawn[2]
    assert "2,500" in drawn[3]
    assert "10,000 km" in drawn[4]


def test_the_caption_tells_the_fit(page, variogram):
    model = variogram[1].model
    (caption,) = [text for text in page.texts("figcaption") if "nugget" in text]
    assert f"nugget of {model.nugget:.3f}" in caption
    assert f"sill of {model.sill:.3f} at {model.range_km():,.0f} km" in caption


def test_figures_take_their_colours_from_the_page(html):
    svg = html[html.index("<svg") : html.rindex("</svg>")]
    assert "fill: var(--ink)" in svg
    assert "stroke: var(--marks)" in svg
    assert "#1c2430" not in svg
    for variable in set(re.findall(r"var\((--[a-z-]+)\)", html)):
        assert html.count(f"{variable}: ") == 3  # light, dark, print


def test_the_same_arguments_give_the_same_bytes(arguments, html, tmp_path):
    assert write_report(tmp_path / "again.html", **arguments).read_text(encoding="utf-8") == html


def test_matplotlib_settings_are_left_alone(arguments, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_report(tmp_path / "report.html", **arguments)
    assert dict(mpl.rcParams) == before


# --- numbers ---


@pytest.fixture
def by_hand(arguments, tmp_path):
    changed = {**arguments, "metrics": {"InfoNCE": METRICS, "explained": METRICS}, "comparison": DIFFERENCES}
    return Page(write_report(tmp_path / "report.html", **changed).read_text(encoding="utf-8"))


def test_the_table_writes_numbers_for_humans(by_hand):
    head, *rows = cells(by_hand)
    assert head == ["", "InfoNCE", "explained", "difference, last − first"]
    assert [row[0] for row in rows] == [
        "within 1 kmstreet",
        "within 25 kmcity",
        "within 200 kmregion",
        "within 750 kmcountry",
        "within 2,500 kmcontinent",
        "median errorhalf are nearer",
        "mean error",
        "GeoScoreof 5,000",
    ]
    assert [row[2] for row in rows] == [
        "31.3 %29.8 to 32.7",
        "70.0 %68.0 to 72.0",
        "90.0 %89.0 to 91.0",
        "95.0 %94.0 to 96.0",
        "100.0 %99.0 to 100.0",
        "3.0 km2.8 to 12.3",
        "1,234 km180 to 2,263",
        "4,7574,729 to 4,783",
    ]
    assert [row[3] for row in rows] == [
        "+3.2 points+2.1 to +4.4",
        "+0.4 points−0.5 to +1.3",
        "−2.5 points−3.1 to −1.2",
        "0.0 points−0.1 to +0.1",
        "0.0 points0.0 to 0.0",
        "−0.58 km−0.82 to −0.34",
        "+2.3 km+1.2 to +41.9",
        "+13−22 to +50",
    ]


def test_a_difference_is_bold_only_where_its_interval_excludes_zero(by_hand):
    bold = [(element["text"], element["class"]) for element in by_hand.all("b") if "class" in element]
    # fewer kilometres are better, fewer hits are worse
    assert bold == [
        ("+3.2 points", "better"),
        ("−2.5 points", "worse"),
        ("−0.58 km", "better"),
        ("+2.3 km", "worse"),
    ]


def test_the_headline_speaks_of_the_last_run(page, arguments):
    last = arguments["metrics"]["explained"]
    headline = next(element["text"] for element in page.all("p") if "held-out" in element["text"])
    assert headline.startswith("explained on 300 held-out places")
    assert "600 gallery places" in headline
    (cards,) = page.all("div", **{"class": "cards"})
    assert f"within 25 km{100 * last['within_25_km']['value']:.1f} %" in cards["text"]
    assert f"GeoScore{last['geoscore']['value']:,.0f}" in cards["text"]


def test_settings_and_times_are_readable(page):
    written = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert written == {
        "batch size": "4,096",
        "learning rate": "0.0003",
        "policy": "explained(hard=0)",
        "bf16": "no",
        "training": "2 min 11 s",
        "evaluation": "8.1 s",
        "embedding": "2 h 2 min",
    }


# --- fewer parts, odd names ---


def test_one_run_without_training_or_comparison(arguments, tmp_path):
    only = {name: {"a <b> & c": arguments[name]["InfoNCE"]} for name in ("metrics", "predicted")}
    changed = {**arguments, **only, "curves": {}, "comparison": None, "hyperparameters": None, "timing": None}
    path = write_report(tmp_path / "report.html", **changed)
    page = Page(path.read_text(encoding="utf-8"))
    assert cells(page)[0] == ["", "a <b> & c"]
    assert page.texts("h2")[-1] == "Errors on the map: a <b> & c"
    assert "Training" not in page.texts("h2")
    assert "Settings" not in page.texts("h2")
    assert "difference" not in page.texts("figcaption")[0]


def test_an_unresolved_range_is_said_and_not_drawn(arguments, tmp_path):
    rng = np.random.default_rng(2)
    latlon = np.stack([rng.uniform(35, 60, 200), rng.uniform(-10, 30, 200)], axis=1)
    empirical = binned_semivariance(rng.normal(size=(200, 32)), latlon, edges_km=log_edges_km(50, 4000, 14))
    fit = fit_variogram(empirical, "exponential")
    assert not fit.resolvable
    path = write_report(tmp_path / "report.html", **{**arguments, "variogram": empirical, "fit": fit})
    assert f"do not tell a range: {fit.note}" in Page(path.read_text(encoding="utf-8")).texts("figcaption")[1]


# --- bad input ---


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"metrics": {}}, "metrics: .*at least one run"),
        (
            lambda a: {"predicted": without(a["predicted"], "InfoNCE")},
            r"predicted: .*InfoNCE.*got \['explained'\]",
        ),
        (lambda a: {"curves": {"other": a["curves"]["InfoNCE"]}}, r"curves: .*got \['other'\]"),
        (lambda a: {"curves": {"InfoNCE": {"step": [1]}}}, "curves of InfoNCE: .*missing loss"),
        (
            lambda a: {"metrics": {**a["metrics"], "InfoNCE": without(METRICS, "mean_km")}},
            "metrics of InfoNCE: .*missing mean_km",
        ),
        (lambda a: {"comparison": without(DIFFERENCES, "geoscore")}, "comparison: .*missing geoscore"),
        (lambda a: {"pairs": without(a["pairs"], "gamma")}, "pairs: .*missing gamma"),
        (lambda a: {"pairs": {**a["pairs"], "h_km": [1.0]}}, "h_km: .*3000.*got 1"),
        (lambda a: {"true_latlon": a["true_latlon"][:-1]}, r"predicted of InfoNCE: .*\(299, 2\).*\(300, 2\)"),
        (lambda a: {"gallery_latlon": a["gallery_latlon"][:, :1]}, r"gallery_latlon: .*\(600, 1\)"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_leave_no_file(arguments, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report.html", **{**arguments, **change(arguments)})
    assert not list(tmp_path.iterdir())


def test_an_unwritable_path_is_an_os_error(arguments, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        write_report(tmp_path / "file" / "report.html", **arguments)
