"""README's Python and its command of the semivariogram run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from semivario_kernels import EmpiricalVariogram, VariogramModel

README = Path(__file__).parents[1] / "README.md"


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
