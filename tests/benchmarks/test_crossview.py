import json

import numpy as np
import torch

from benchmarks.crossview import NEIGHBOURS, QUICK, RANDOM, main, make_places, run


def test_quick_run_writes_a_table_and_goes_on(tmp_path, capsys):
    command = ["--quick", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert main(command) == 0
    (file,) = (tmp_path / "out").glob("*.json")
    result = json.loads(file.read_text())
    assert file.with_suffix(".md").read_text() in capsys.readouterr().out
    runs = {made["contender"]: made for made in result["runs"]}
    assert len(runs) == 4
    assert {made["steps"] for made in runs.values()} == {30}
    assert runs[NEIGHBOURS]["neighbour_km"] < runs[RANDOM]["neighbour_km"]
    assert main(command) == 0
    again = json.loads(file.read_text())
    assert again["runs"] == result["runs"]  # their times too: nothing ran again
    assert "seed 0 …" not in capsys.readouterr().err


def test_both_views_show_one_scene():
    places = make_places(QUICK._replace(noise=0.0), 2, np.random.default_rng(0))
    # on the satellite image's rim, north is up and east is right; the panorama's middle looks north
    for column, (row, other) in {16: (0, 7), 24: (7, 15), 8: (7, 0)}.items():
        seen = places.panorama[:, :, -1, column - 1 : column + 1].mean(dim=2)
        above = (
            places.satellite[:, :, row, other] if column != 16 else places.satellite[:, :, 0, 7:9].mean(dim=2)
        )
        above = above if column == 16 else places.satellite[:, :, 7:9, other].mean(dim=2)
        torch.testing.assert_close(seen, above, rtol=0, atol=0.1)


def test_a_run_repeats():
    world = QUICK._replace(epochs=2)
    first, second = run(world, RANDOM, 0), run(world, RANDOM, 0)
    assert first["recall@1"] == second["recall@1"]
