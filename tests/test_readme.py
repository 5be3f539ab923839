"""README's Python and its commands run as they stand there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
from safetensors.torch import save_file

from geoclip.checkpoint import read_checkpoint
from geoclip.embedding_store import EmbeddingStore
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


def test_the_training_commands_run(tmp_path):
    """On few photos and with the weights' file in the hub's cache, but drawn at random."""
    for table, count in {"photos.csv": 16, "held-out.csv": 4}.items():
        folder = table.removesuffix(".csv")
        photos = render_photos(tmp_path / folder, count, seed=count).read_text()
        (tmp_path / table).write_text(re.sub(r",(\d+\.jpg)", rf",{folder}/\1", photos))
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "held-out" / "00000.jpg").read_bytes())
    cached = tmp_path / "hub" / "models--timm--vit_large_patch14_clip_224.openai"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("revision")
    (cached / "snapshots" / "revision").mkdir(parents=True)
    weights = open_clip.create_model("ViT-L-14", precision="fp16").state_dict()
    save_file(weights, cached / "snapshots" / "revision" / "open_clip_model.safetensors")
    small = {
        "HF_HUB_CACHE": tmp_path / "hub",
        "HF_HUB_OFFLINE": 1,
        "GEOCLIP_FIT_TRAINER__MAX_STEPS": 3,
        "GEOCLIP_FIT_DATA__BATCH_SIZE": 8,
        "GEOCLIP_FIT_MODEL__QUEUE_SIZE": 8,
        "GEOCLIP_FIT_MODEL__OUTPUT_DIM": 16,
        "GEOCLIP_FIT_MODEL__WIDTH": 64,
    }
    lines = [line for line in SHELL_LINES if line.startswith("geoclip ")]
    assert [line.split()[1] for line in lines] == ["embed", "embed", "variogram", "fit", "eval", "predict"]
    *_, predicted = [run_shell_line(line, cwd=tmp_path, **small) for line in lines]
    assert EmbeddingStore.open(tmp_path / "data" / "train").dim == 768
    assert read_checkpoint(tmp_path / "runs" / "mine" / "last.ckpt")["global_step"] == 3
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert 0 < metrics["median_km"]["value"] < 20_016
    assert re.search(r"^photo\.jpg,1,-?\d+\.\d+,", predicted, re.MULTILINE)
