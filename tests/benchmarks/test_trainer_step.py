import json

import pytest

from benchmarks.trainer_step import PARTS, main


def test_the_command_times_every_part_of_a_step(tmp_path, capsys):
    sizes = ["--batch", "8", "--queue", "16", "--gallery", "0", "--steps", "2", "--only", "time"]
    main([*sizes, "--out", str(tmp_path)])
    (file,) = tmp_path.glob("trainer-step-*.json")
    measured = json.loads(file.read_text())["time"]
    seconds = measured["seconds"]
    assert {len(of) for of in seconds.values()} == {2}
    for number, step in enumerate(seconds["step"]):
        assert sum(seconds[part][number] for part in PARTS) == pytest.approx(step, rel=1e-9)
        assert all(seconds[part][number] > 0 for part in PARTS)
        loss = seconds["loss"][number] + seconds["backward of the loss"][number]
        assert measured["loss_share"][number] == pytest.approx(loss / step, rel=1e-9)
    assert file.with_suffix(".md").read_text() in capsys.readouterr().out
