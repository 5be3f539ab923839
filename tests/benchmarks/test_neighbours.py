import json

import numpy as np

from benchmarks.neighbours import ROUNDING_KM, largest_difference_km, main, make_places
from geoclip.sampling import geographic_neighbours


def test_quick_run_writes_a_checked_table(tmp_path, capsys):
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    (row,) = json.loads(file.read_text())["rows"]
    assert row["right"]
    assert row["seconds"] > 0
    assert row["compared"] == row["places"] == 3000
    assert file.with_suffix(".md").read_text() in capsys.readouterr().out


def test_a_wrong_neighbour_shows():
    latlon = make_places(500)
    nearest = geographic_neighbours(latlon, 20)
    rows = np.arange(500)
    assert largest_difference_km(latlon, nearest, rows) <= ROUNDING_KM
    swapped = nearest.copy()
    swapped[100, [3, 15]] = swapped[100, [15, 3]]
    assert largest_difference_km(latlon, swapped, rows) > ROUNDING_KM
    twice = nearest.copy()
    twice[100, 4] = twice[100, 3]
    assert largest_difference_km(latlon, twice, rows) == np.inf
