import json

from benchmarks.results_page import newest, page

INTERVAL = [3.25, 1.5, 5.0]


def accuracy(date, value):
    row = {
        "world": "w",
        "sampler": "neighbours",
        "label": "none()",
        "answer": "most alike",
        "seeds": [0, 1],
        "photos": 10,
        "accuracy_percent": [value] * 5,
        "difference_points": None,
        "training_s": 12.3,
    }
    ours = {**row, "label": "explained(hard=0, false=6)", "difference_points": [INTERVAL] * 5}
    return {
        "subject": "accuracy",
        "date": date,
        "machine": {"processor": "P"},
        "training": {"steps": 400, "batch_size": 512, "learning_rate": 1e-3},
        "planned": 4,
        "finished": 4,
        "rows": [row, ours],
    }


def write(folder, name, result, text=""):
    (folder / f"{name}.json").write_text(json.dumps(result))
    (folder / f"{name}.md").write_text(text)


def test_page_holds_the_newest_whole_results(tmp_path) -> None:
    write(tmp_path, "accuracy-2026-01-01", accuracy("2026-01-01", 11.1))
    write(tmp_path, "accuracy-2026-02-01", accuracy("2026-02-01", 22.2))
    write(tmp_path, "cpu-2026-01-05", {"times": []}, "# Benchmarks: whole\n\nnumbers of the loss\n")
    write(tmp_path, "cpu-2026-01-05-mean", {"times": []}, "# Benchmarks: part\n")
    write(tmp_path, "cpu-2026-01-06-memory", {"times": []}, "# Benchmarks: newer piece\n")
    write(tmp_path, "nvcc-2026-01-05", {"kernels": []}, "# not for users\n")
    write(tmp_path, "operators-cpu-2026-01-05", {"subject": "operators", "times": []}, "# Operators: P\n")
    found = newest(tmp_path)
    assert [path.stem for paths in found.values() for path in paths] == [
        "accuracy-2026-02-01",
        "cpu-2026-01-05",
        "cpu-2026-01-06-memory",
        "operators-cpu-2026-01-05",
    ]
    text = page(found, tmp_path / "images")
    assert "400 steps of 512 photos, learning rate 0.001; 4 of 4 planned runs had finished" in text
    assert "| w | neighbours | `none()` | most alike | 2 | 22.2 % | 22.2 % |" in text
    assert "| 2 | **+3.2** [+1.5, +5.0] | **+3.2** [+1.5, +5.0] |" in text
    assert "it is reached by none. Answering with the supported place, it is reached by none." in text
    gain = accuracy("2026-03-01", 1.0)
    gain["rows"][1]["difference_points"][1] = [4.0, 0.1, 7.9]
    write(tmp_path, "accuracy-2026-03-01", gain)
    again = page(newest(tmp_path), tmp_path / "images")
    drawn = (tmp_path / "images" / "accuracy-w.svg").read_bytes()
    page(newest(tmp_path), tmp_path / "images")
    assert (tmp_path / "images" / "accuracy-w.svg").read_bytes() == drawn
    assert "reached on batches 'neighbours' by `explained(hard=0, false=6)` (2 seeds). Answering" in again
    assert "### Benchmarks: whole\n\nnumbers of the loss" in text
    assert "### Benchmarks: newer piece" in text
    assert "11.1" not in text
    assert "part" not in text
    assert "not for users" not in text
    other = accuracy("2026-03-02", 5.5)
    for row in other["rows"]:
        row["world"] = "v"
    both = accuracy("2026-03-03", 6.6)
    both["rows"] = other["rows"] + gain["rows"]
    write(tmp_path, "accuracy-2026-03-03", both)
    write(tmp_path, "accuracy-2026-03-04-w", accuracy("2026-03-04", 44.4))
    parts = page(newest(tmp_path), tmp_path / "images")
    assert parts.count("| v | neighbours | `none()` |") == 1
    assert parts.count("| w | neighbours | `none()` | most alike | 2 | 44.4 %") == 1
    assert parts.count("| w | neighbours | `none()` |") == 1
    picture = (tmp_path / "images" / "accuracy-w.svg").read_text()
    assert picture.startswith("<?xml")
