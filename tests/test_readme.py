"""README's Python and its commands run as they stand there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from geoclip.cli import main
from semivario_kernels import EmpiricalVariogram, VariogramModel

from .geoclip.rendered_photos import render_photos

README = Path(__file__).parents[1] / "README.md"


def test_every_block_is_run():
    """By the tests below, by test_release.py, or as a target of the Makefile, which has tests of its own."""
    text = README.read_text()
    languages = re.findall(r"^```(\w+)$", text, re.MULTILINE)
    assert set(languages) == {"bash", "python"}
    assert languages.count("python") == 1
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (README.parent / "Makefile").read_text(), re.MULTILINE)
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            command = shlex.split(line, comments=True)
            known = (
                command[0] == "geoclip"
                or command[:2] == ["pip", "install"]
                or command[:3] == ["python", "-m", "semivario_kernels"]
                or (command[0] == "make" and command[1] in targets.split())
            )
            assert known, line


def test_the_import_example_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    run = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loss, *backends = run.stdout.splitlines()
    assert 3 < float(loss) < 30  # ln 2048 = 7.6, and random features at a scale of 14
    assert any(line.startswith("reference: available") for line in backends)


def test_the_command_of_the_semivariogram_runs(tmp_path):
    (line,) = re.findall(r"^python (-m semivario_kernels variogram .*)$", README.read_text(), re.MULTILINE)
    generator = np.random.default_rng(0)
    latlon = generator.uniform((-70, -180), (70, 180), (500, 2))
    # alike where places are near, with noise
    embeddings = np.cos(np.radians(latlon) @ generator.normal(size=(2, 32)) * 3)
    np.save(tmp_path / "embeddings.npy", embeddings + 0.3 * generator.normal(size=embeddings.shape))
    places = tmp_path / "places.csv"
    np.savetxt(places, latlon, delimiter=",", header="latitude,longitude", comments="")
    run = subprocess.run(
        [sys.executable, *shlex.split(line)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert EmpiricalVariogram.load(tmp_path / "variogram.npz").counts.sum() == 500 * 499 // 2
    assert VariogramModel.load(tmp_path / "variogram.json").kind == "stable"
    assert (tmp_path / "variogram.png").stat().st_size > 10_000


def test_the_training_commands_run(tmp_path, monkeypatch, capsys):
    """As they stand, but for a tiny model with random weights in the place of the official one."""
    block = re.search(r"```bash\n(geoclip embed.*?)```", README.read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True)[1:] for line in block[1].splitlines()]
    monkeypatch.chdir(tmp_path)
    Path("readme-tiny.json").write_text(
        json.dumps(
            {
                "embed_dim": 32,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8},
                "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
            }
        )
    )
    for table, count in {"photos.csv": 300, "held-out.csv": 20}.items():
        photos = render_photos(tmp_path / table.removesuffix(".csv"), count, seed=count).read_text()
        folder = table.removesuffix(".csv")
        Path(table).write_text(re.sub(r",(\d+\.jpg)", rf",{folder}/\1", photos))
    Path("photo.jpg").write_bytes(Path("held-out/00000.jpg").read_bytes())
    smaller = {
        "embed": ["--backbone", "readme-tiny.json", "--pretrained", "none", "--workers", "0"],
        "variogram": ["--first-km", "500", "--bins", "12"],
        "fit": [
            *("--trainer.max_steps=3", "--trainer.accelerator=cpu", "--data.batch_size=64"),
            *(
                "--model.queue_size=64",
                "--model.output_dim=16",
                "--model.width=32",
                "--model.encoded_size=16",
            ),
        ],
    }
    for line in lines:
        assert main([*line, *smaller.get(line[0], [])]) == 0, line
    assert [line[0] for line in lines] == ["embed", "embed", "variogram", "fit", "eval", "predict"]
    metrics = json.loads(Path("metrics.json").read_text())["metrics"]
    assert 0 < metrics["median_km"]["value"] < 20_016
    assert re.search(r"^photo\.jpg,1,-?\d+\.\d+,", capsys.readouterr().out, re.MULTILINE)
