"""nvcc compiles the GPU's kernels for sm_80, sm_90 and sm_100; no GPU is needed to import the extension."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks import cuda_build
from semivario_kernels.backends import cuda_epilogue, native

NEEDS_NVCC = pytest.mark.skipif(cuda_build.nvcc_version() is None, reason="no nvcc on PATH")


@pytest.fixture(scope="module")
def built():
    return cuda_build.build()


@NEEDS_NVCC
@pytest.mark.timeout(1200)  # a minute of processor time, where nothing is cached
def test_no_kernel_spills(built):
    _, log = built
    assert "warning" not in log
    rows = cuda_build.kernels(log)
    names = {row.name for row in rows}
    assert len(names) > 20
    for name in names:
        assert {row.architecture for row in rows if row.name == name} == set(cuda_build.ARCHITECTURES)
    for row in rows:
        assert (row.spill_bytes, row.stack_bytes) == (0, 0), row
        assert 0 < row.registers <= 128, row
        assert row.shared_bytes <= 48 * 1024, row
    policies = {found.group(1) for name in names if (found := re.match(r"forward_tile<(\w+), false>", name))}
    assert policies == {
        *("none", "semivariogram", "explained", "threshold"),
        *("rectify", "penalty", "distance", "distance_linear"),
    }


@NEEDS_NVCC
def test_command_writes_the_table(built, tmp_path, capsys):
    assert cuda_build.main(["--out", str(tmp_path)]) == 0
    assert "0 with spills" in capsys.readouterr().out
    (file,) = tmp_path.glob("nvcc-*.json")
    rows = json.loads(file.read_text())["kernels"]
    table = file.with_suffix(".md").read_text()
    assert len(rows) == len(cuda_build.kernels(built[1]))
    assert all(f"| {row['name']} |" in table for row in rows)


def test_spills_are_seen(monkeypatch, tmp_path, capsys):
    log = """
ptxas info    : Compiling entry function '_Z4leakPf' for 'sm_90'
ptxas info    : Function properties for _Z4leakPf
    48 bytes stack frame, 40 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem, 360 bytes cmem[0]
"""
    (row,) = cuda_build.kernels(log)
    assert row == cuda_build.Kernel("leak", "sm_90", 255, 48, 64, 2048)
    monkeypatch.setattr(cuda_build, "build", lambda: (tmp_path, log))
    monkeypatch.setattr(cuda_build, "nvcc_version", lambda: "13.0")
    assert cuda_build.main(["--out", str(tmp_path)]) == 1
    assert "leak, sm_90: 64 bytes of spills" in capsys.readouterr().err


@NEEDS_NVCC
@pytest.mark.skipif(sys.platform != "linux", reason="reads the ELF header")
def test_extension_needs_neither_driver_nor_runtime_library(built):
    library, _ = built
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" in needed
    assert "cuda" not in needed
    assert "torch" not in needed
    assert "not found" not in needed


@NEEDS_NVCC
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_extension_says_what_is_missing(built):
    library, _ = built
    script = (
        "import importlib.util as u, sys\n"
        "spec = u.spec_from_file_location('_native_cuda', sys.argv[1])\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.device_problem(0))\n"
        "try: module.read_ranking(device=0, stream=0, best=0, count=1, values=0, indices=0)\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, library], capture_output=True, text=True, check=True)
    problem, error = done.stdout.splitlines()
    assert problem == "no CUDA driver is installed"
    assert re.match(r"cudaGetDevice: CUDA error: .*driver", error)


@NEEDS_NVCC
def test_only_the_architectures_asked_for_are_compiled(tmp_path):
    """nvcc says what it would run; the oldest one's PTX serves all others."""
    folders = ["--build-lib", tmp_path, "--build-temp", tmp_path]
    command = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    environment = {**os.environ, "SEMIVARIO_CUDA": "1", "SEMIVARIO_NATIVE": "0"}
    environment |= {"NVCC_APPEND_FLAGS": "--dryrun", "SEMIVARIO_CUDA_ARCHITECTURES": "80 100"}
    done = subprocess.run(command, cwd=cuda_build.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"ptxas .*-arch=(sm_\d+)", done.stdout)) == {"sm_80", "sm_100"}
    assert set(re.findall(r"kind=ptx,sm=(\d+)", done.stdout)) == {"80"}
    environment["SEMIVARIO_CUDA_ARCHITECTURES"] = "42"
    done = subprocess.run(command, cwd=cuda_build.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "knows none of the architectures 42" in done.stderr


def test_absence_is_explained(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(cuda_epilogue, "_native_cuda", None)
    monkeypatch.setattr(cuda_epilogue, "_reason", "No module named '_native_cuda'")
    assert "_native_cuda" in native.unavailable(cuda)
    monkeypatch.setattr(cuda_epilogue, "_reason", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert native.unavailable(cuda) == "torch finds no CUDA device"
    assert native.unavailable(torch.device("meta")) == "compiled for the CPU and for CUDA, not for meta"


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")
def test_names_are_readable():
    mangled = "_ZN9semivario12_GLOBAL__N_112forward_tileILNS_10PolicyKindE4ELb1EEEvv"
    assert cuda_build.readable(mangled) == "forward_tile<rectify, true>"
