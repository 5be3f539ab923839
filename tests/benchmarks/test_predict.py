"""The committed numbers of `geoclip predict`: the table is the JSON's, and the bar is met."""

import json
from pathlib import Path

import pytest

from benchmarks.predict import BAR, markdown

RESULTS = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("predict-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_table_says_what_was_measured(path):
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == markdown(result)
    for name, seconds in result["ours_s"].items():
        slowest = max(seconds)
        assert result["queries"] * min(result["upstream_s_per_query"]) / slowest > BAR, name
    found, compared = result["same_places"]
    assert found == compared
    assert result["largest_difference_of_probability"] < 1e-5
