import json

import benchmarks.data_reading as data_reading
from geoclip.datasets import read_photos


def test_memory_grows_with_what_is_kept_not_with_the_file(tmp_path):
    """50,000 rows are a table of 22 MiB; ids, positions and codes of the areas are 3 MiB."""
    file = data_reading.write_osv5m_table(tmp_path / "large", 50_000)
    data_reading.write_osv5m_table(tmp_path / "small", 1000)
    assert file.stat().st_size > 20 * 2**20
    baseline = data_reading.open_table(tmp_path / "small")
    # blocks in flight, and so the peak, vary with the threads' timing
    runs = [data_reading.open_table(tmp_path / "large") for _ in range(3)]
    opened = min(runs, key=lambda run: run["peak_mib"])
    assert (baseline["rows"], opened["rows"]) == (1000, 50_000)
    # the dictionaries of regions and cities, the blocks in flight and a hash of the ids come on top
    assert opened["peak_mib"] - baseline["peak_mib"] < 85
    photos = read_photos(tmp_path / "large")
    held = photos.ids.nbytes + photos.latlon.nbytes + sum(c.indices.nbytes for c in photos.areas.values())
    assert held < 60 * 50_000
    assert len(photos.areas["city"].dictionary) > 20_000


def test_the_command_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data_reading, "ROUNDS", 1)
    assert data_reading.main(["--quick", "--out", str(tmp_path)]) == 0
    (result,) = tmp_path.glob("data-reading-cpu-*.json")
    measured = json.loads(result.read_text())
    assert measured["table"]["rows"] == 20_000
    assert len(measured["reading"]["shuffled"]) == 1
    assert result.with_suffix(".md").read_text() in capsys.readouterr().out
