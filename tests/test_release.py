"""The version stands in one place, and the packages ship what they promise."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

import semivario_kernels

from .readme_commands import run_shell_line, shell_line

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


def run(*command, cwd, **environment):
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_sdist_installs_with_readmes_command_and_runs_examples(tmp_path):
    """One test: the compiled kernels are built once, which takes half a minute."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "clone", filter="data")
    (clone,) = (tmp_path / "clone").iterdir()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources | {"README.md", "LICENSE", "setup.py", "pyproject.toml", "CITATION.cff"} <= names

    # the environment that the tests run in has the dependencies and the build tools; its own pip installs
    commands, site = tmp_path / "bin", tmp_path / "site"
    commands.mkdir()
    (commands / "pip").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip "$@"\n')
    (commands / "pip").chmod(0o755)
    options = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_TARGET": site}  # 0 turns it off
    kernels = {"SEMIVARIO_CUDA": "0", "SEMIVARIO_NATIVE": "1"}
    printed = run_shell_line(shell_line("pip install"), cwd=clone, path=commands, **options, **kernels)
    assert "Installing build dependencies" not in printed
    names = {str(path.relative_to(site)) for path in site.rglob("*")}
    assert {"semivario_kernels/py.typed", "geoclip/py.typed"} <= names
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
    printed = run(sys.executable, "-c", code, site, *scripts, cwd=tmp_path)
    assert "GalleryInfoNCE" in printed
    assert "nugget" in printed
