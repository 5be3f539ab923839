"""README's Python and its commands run as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from geoclip.cli import main
from semivario_kernels import EmpiricalVariogram, VariogramModel

from .geoclip.rendered_photos import render_photos
from .readme_commands import README, ROOT, SHELL_LINES, run_make_line, run_shell_line, shell_line


def test_every_block_is_run():
    """By the tests below, or, each by its own file's, the demo and the installation."""
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"bash", "python"}
    assert README.count("```python\n") == 1
    run_below = ("geoclip ", "make test ", "make bench", "python -m semivario_kernels variogram ")
    run_elsewhere = {"make demo ": "geoclip/test_demo.py", "pip install ": "test_release.py"}
    for start, file in run_elsewhere.items():
        assert f'shell_line("{start.strip()}' in (Path(__file__).parent / file).read_text()
    for line in SHELL_LINES:
        assert line.startswith((*run_below, *run_elsewhere)), line


def test_make_test_runs():
    printed = run_make_line(
        shell_line("make test"), TEST_FLAGS="tests/test_architecture.py", PYTEST_XDIST_AUTO_NUM_WORKERS="1"
    )
    tests = (ROOT / "tests" / "test_architecture.py").read_text().count("\ndef test_")
    assert re.search(rf"=+ {tests} passed in ", printed)


def test_make_bench_runs(tmp_path):
    flags = f"loss --quick --seconds 0 --only forward mean --out {tmp_path}"
    printed = run_make_line(shell_line("make bench"), BENCH_FLAGS=flags)
    (file,) = tmp_path.glob("cpu-*-quick-forward-mean.json")
    rows = json.loads(file.read_text())["times"]
    assert {(row["case"], row["right"]) for row in rows if row["role"] == "ours"} == {
        ("forward", True),
        ("mean", True),
    }
    assert file.with_suffix(".md").read_text() in printed


def test_the_import_example_runs():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    loss, *backends = run.stdout.splitlines()
    assert 3 < float(loss) < 30  # ln 2048 = 7.6, and random features at a scale of 14
    assert any(line.startswith("reference: available") for line in backends)


def test_the_command_of_the_semivariogram_runs(tmp_path):
    generator = np.random.default_rng(0)
    latlon = generator.uniform((-70, -180), (70, 180), (500, 2))
    # alike where places are near, with noise
    embeddings = np.cos(np.radians(latlon) @ generator.normal(size=(2, 32)) * 3)
    np.save(tmp_path / "embeddings.npy", embeddings + 0.3 * generator.normal(size=embeddings.shape))
    places = tmp_path / "places.csv"
    np.savetxt(places, latlon, delimiter=",", header="latitude,longitude", comments="")
    run_shell_line(shell_line("python -m semivario_kernels variogram"), cwd=tmp_path, PYTHONPATH=ROOT)
    assert EmpiricalVariogram.load(tmp_path / "variogram.npz").counts.sum() == 500 * 499 // 2
    assert VariogramModel.load(tmp_path / "variogram.json").kind == "stable"
    assert (tmp_path / "variogram.png").stat().st_size > 10_000


def test_the_training_commands_run(tmp_path, monkeypatch, capsys):
    """As they stand, but for a tiny model with random weights in the place of the official one."""
    lines = [shlex.split(line, comments=True)[1:] for line in SHELL_LINES if line.startswith("geoclip ")]
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
