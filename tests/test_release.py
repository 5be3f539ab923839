"""The version stands in one place, and the packages ship what they promise."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import semivario_kernels

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_comes_from_pyproject():
    assert semivario_kernels.__version__ == PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    with pytest.raises(AttributeError, match="no attribute 'versoin'"):
        _ = semivario_kernels.versoin


def test_the_extras_that_messages_name_exist():
    sources = [
        path for package in ("semivario_kernels", "geoclip") for path in (ROOT / package).rglob("*.py")
    ]
    named = {
        extra for path in sources for extra in re.findall(r"install_command\(['\"](\w+)", path.read_text())
    }
    assert {"variogram", "train", "serve"} <= named <= set(PROJECT["optional-dependencies"])


def test_sdist_and_wheel(tmp_path):
    """One test: the wheel is built from the sdist, which takes half a minute."""
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT],
        env={**os.environ, "SEMIVARIO_CUDA": "0", "SEMIVARIO_NATIVE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")

    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources | {"README.md", "LICENSE", "setup.py", "pyproject.toml", "CITATION.cff"} <= names

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"semivario_kernels/py.typed", "geoclip/py.typed"} <= set(names)
    assert any(name.startswith("semivario_kernels/_native.") for name in names)
    assert any(name.startswith("geoclip/configs/") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "csrc/", "examples/")) for name in names)

    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import runpy, semivario_kernels as s, torch\n"
        "assert s.__file__.startswith(sys.argv[1]), s.__file__\n"
        "assert s.explain_backend(torch.zeros(1)).startswith('native'), s.explain_backend(torch.zeros(1))\n"
        "for script in sys.argv[2:]: runpy.run_path(script, run_name='__main__')\n"
    )
    scripts = [ROOT / "examples" / name for name in ("open_clip_loss.py", "sensor_semivariogram.py")]
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "site", *scripts],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "GalleryInfoNCE" in run.stdout
    assert "nugget" in run.stdout
