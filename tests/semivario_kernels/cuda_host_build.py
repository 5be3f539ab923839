"""csrc/cuda/ compiled for the CPU: the kernels' own source, run by the stand-in for CUDA in cuda_on_host/.

Built once per state of the sources, into the cache of test builds; with SEMIVARIO_SANITIZE=1 under
AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.cuda_build import CACHE, source_key

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "cuda_on_host"
FLAGS = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
]
if os.environ.get("SEMIVARIO_SANITIZE") == "1":
    FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    FLAGS += ["-fno-omit-frame-pointer", "-g"]


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def unavailable_reason() -> str | None:
    if torch.cuda.is_available():
        return "there is a GPU to run the kernels on"
    return None if shutil.which(compiler()) else f"no C++ compiler: {compiler()}"


@cache
def host_module() -> ModuleType:
    """The extension `_native_cuda` whose kernels run on the CPU, on CPU tensors."""
    sources = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*"), *STAND_IN.glob("*")]
    key = source_key(sources, compiler(), *FLAGS, sysconfig.get_config_var("SOABI"))
    folder = CACHE / f"cuda-on-host-{key}"
    library = folder / "_native_cuda.so"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(folder, library)
    spec = importlib.util.spec_from_file_location("_native_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(folder: Path, library: Path) -> None:
    pybind11 = Path(torch.__file__).with_name("include")  # torch brings its headers
    includes = [f"-I{path}" for path in (STAND_IN, sysconfig.get_paths()["include"])] + [
        f"-isystem{pybind11}"
    ]
    compilations = []
    for source in [*ROOT.glob("csrc/cuda/*.cu"), ROOT / "csrc/cuda/bindings.cpp"]:
        output = folder / f"{source.stem}.o"
        command = [compiler(), *FLAGS, *includes, "-x", "c++", "-c", str(source), "-o", str(output)]
        compilations.append((output, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    for output, compilation in compilations:
        errors = compilation.communicate()[1]
        assert compilation.returncode == 0, f"{output.stem}:\n{errors}"
    partial = library.with_suffix(".partial")
    objects = [output for output, _ in compilations]
    subprocess.run([compiler(), *FLAGS, "-shared", *objects, "-o", partial], check=True)
    partial.rename(library)
