"""Builds csrc/ into semivario_kernels/_native and _native_cuda; what is static stands in pyproject.toml.

_native, for the CPU: the kernels are compiled once per instruction set and the best one is chosen at run
time, so that a wheel runs on every processor of its architecture. The extension is linked neither to torch
nor to an OpenMP library: torch loads its own, whose threads ours share. Without a compiler the build warns
and goes on; the package then runs on torch alone.

_native_cuda, for NVIDIA GPUs: nvcc compiles for Ampere, Hopper and Blackwell, and PTX for all others. CUDA's
run-time library is linked statically and looks for a driver when it is first called, so that a wheel also
runs where there is no GPU. Wheels hold it where nvcc is found; a development install only where there is a
GPU as well, or on demand, since it takes nvcc about two minutes of processor time.

pybind11's headers are those of the installed package, or else the copy that torch brings.

Environment: SEMIVARIO_NATIVE=1 makes a failing build of _native an error, =0 leaves it out; SEMIVARIO_CUDA
alike for _native_cuda, whose architectures SEMIVARIO_CUDA_ARCHITECTURES names ("90" or "80 90");
SEMIVARIO_SANITIZE=1 builds _native with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = ["csrc/bindings.cpp", "csrc/cpu/dispatch.cpp", "csrc/cpu/amx_product.cpp"]
# compiled once per instruction set
KERNELS = [f"csrc/cpu/{name}_kernels.cpp" for name in ("tile", "binned", "ranking")]
X86_LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ],
}
CUDA_NAME = "semivario_kernels._native_cuda"
CUDA_ARCHITECTURES = ("80", "90", "100")
CUDA_FLAGS = [
    *("-std=c++17", "-O3"),
    # divisions and roots may be wrong in their last bit; denormals count as 0
    *("-ftz=true", "-prec-div=false", "-prec-sqrt=false"),
]
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g",
]


class BuildNative(build_ext):
    """`build_ext` that compiles the kernels once per instruction set, and the GPU's by nvcc."""

    def finalize_options(self) -> None:
        """Leave the GPU's extension out of a development install without a GPU that does not ask for it."""
        super().finalize_options()
        in_place = self.inplace or getattr(self, "editable_mode", False)
        if in_place and os.environ.get("SEMIVARIO_CUDA") != "1" and not has_gpu():
            self.extensions = [ext for ext in self.extensions or [] if ext.name != CUDA_NAME]

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        self.announce(f"building {ext.name}", level=2)
        if ext.name == CUDA_NAME:
            self.build_cuda(ext)
        else:
            self.build_native(ext)

    def build_cuda(self, ext: Extension) -> None:
        """Compile the kernels and the binding by nvcc, which also knows where its own libraries are."""
        folder, nvcc = Path(self.build_temp, "cuda"), find_nvcc()
        if nvcc is None:
            raise CompileError("nvcc: not found on PATH or under CUDA_HOME")
        folder.mkdir(parents=True, exist_ok=True)
        flags = [*CUDA_FLAGS, *architecture_flags(nvcc), *(f"-I{path}" for path in ext.include_dirs)]
        host = (
            ["/EHsc", "/MD"]
            if sys.platform == "win32"
            else ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        )
        flags += [f"-Xcompiler={flag}" for flag in host]

        def compile_source(source: str) -> str:
            target = str(folder / (Path(source).stem + (".obj" if sys.platform == "win32" else ".o")))
            nvcc_run([nvcc, *flags, "-c", source, "-o", target])
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_source, ext.sources))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        python = [f"-L{path}" for path in self.library_dirs] if sys.platform == "win32" else []
        nvcc_run([nvcc, "-shared", "-cudart=static", *python, *objects, "-o", str(library)])

    def build_native(self, ext: Extension) -> None:
        """Compile and link the CPU's extension."""
        microsoft = self.compiler.compiler_type == "msvc"
        levels = {"baseline": []}
        # the other platforms' compilers may build for several architectures at once
        if sys.platform == "linux" and platform.machine() == "x86_64":
            levels = X86_LEVELS
            ext.define_macros.append(("SEMIVARIO_X86_LEVELS", "1"))
        if microsoft:
            flags = ["/O2", "/std:c++17", "/EHsc"]
        else:
            flags = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-g0"]
            flags += [
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fno-trapping-math",
            ]  # NaN and infinities are kept
            flags.append("-fopenmp" if sys.platform == "linux" else "-fopenmp-simd")
        if os.environ.get("SEMIVARIO_SANITIZE") == "1":
            flags += SANITIZE
            ext.extra_link_args += SANITIZE
        ext.extra_compile_args += flags
        ext.extra_objects = []
        jobs: list[tuple[str, Path, list[str]]] = []
        ninja = None if microsoft else find_ninja()
        for name, instructions in levels.items():
            options = [*flags, *instructions, f"-DSEMIVARIO_ISA={name}"]
            folder = Path(self.build_temp, name)
            if ninja is None:
                ext.extra_objects += self.compiler.compile(
                    KERNELS,
                    output_dir=str(folder),
                    macros=[("SEMIVARIO_ISA", name)],
                    extra_postargs=flags + instructions,
                )
            else:
                jobs += [(source, folder / f"{Path(source).stem}.o", options) for source in KERNELS]
        if ninja is not None:
            ext.extra_objects += self.compile_together(ninja, jobs)
        super().build_extension(ext)

    def compile_together(self, ninja: str, jobs: list[tuple[str, Path, list[str]]]) -> list[str]:
        """Compile (source, object, options) by ninja, on all cores, again only where a file has changed."""
        compiler = getattr(self.compiler, "compiler_so_cxx", self.compiler.compiler_so)
        command = shlex.join([*compiler, *(f"-I{path}" for path in self.compiler.include_dirs)])
        command = command.replace("$", "$$")  # ninja's own variables begin so
        lines = [
            f"builddir = {self.build_temp}",  # of ninja's log
            f"rule cxx\n  command = {command} $options -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d\n  deps = gcc",
        ]
        for source, target, options in jobs:
            lines.append(f"build {target}: cxx {source}\n  options = {shlex.join(options)}")
        script = Path(self.build_temp, "build.ninja")
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text("\n".join(lines) + "\n")
        run = [ninja, "--quiet", "-f", str(script)]
        try:
            if self.force:
                subprocess.run([*run, "-t", "clean"], check=True)
            subprocess.run(run, check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"failed: {shlex.join(error.cmd)}") from error
        return [str(target) for _, target, _ in jobs]


def find_nvcc() -> str | None:
    """Path of nvcc, on PATH or below CUDA_HOME."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None)


def find_ninja() -> str | None:
    """Path of ninja: the package's, or on PATH."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        return shutil.which("ninja")
    return shutil.which("ninja", path=BIN_DIR) or shutil.which("ninja")


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()


def architecture_flags(nvcc: str) -> list[str]:
    """Machine code for the architectures this nvcc knows, and PTX from which the driver makes any other."""
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = os.environ.get("SEMIVARIO_CUDA_ARCHITECTURES", "").split() or CUDA_ARCHITECTURES
    built = [number for number in wanted if f"compute_{number}" in known]
    if not built:
        raise CompileError(f"{nvcc} knows none of the architectures {', '.join(wanted)}")
    oldest = built[0]
    return [f"-gencode=arch=compute_{number},code=sm_{number}" for number in built] + [
        f"-gencode=arch=compute_{oldest},code=compute_{oldest}"
    ]


def nvcc_run(command: list[str]) -> None:
    """Run nvcc and print at once what it says, or CompileError."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.stdout:
        print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise CompileError(f"failed: {' '.join(command)}")


def native_extension(include: str) -> Extension:
    """The CPU's extension."""
    return Extension(
        "semivario_kernels._native",
        SOURCES,
        include_dirs=[include],
        depends=[*glob("csrc/*.h"), *glob("csrc/cpu/*"), "setup.py"],
        language="c++",
        optional=os.environ.get("SEMIVARIO_NATIVE") != "1",
    )


def cuda_extension(include: str) -> Extension:
    """The GPU's extension."""
    return Extension(
        CUDA_NAME,
        [*sorted(glob("csrc/cuda/*.cu")), "csrc/cuda/bindings.cpp"],
        include_dirs=[include, sysconfig.get_paths()["include"]],
        depends=[*glob("csrc/*.h"), *glob("csrc/cuda/*.h"), "setup.py"],
        language="c++",
        optional=os.environ.get("SEMIVARIO_CUDA") != "1",
    )


def pybind11_include() -> str | None:
    """Folder of pybind11's headers."""
    for package, folder in (("pybind11", "include"), ("torch", "include")):
        found = find_spec(package)
        if found is not None and found.origin is not None:
            include = Path(found.origin).with_name(folder)
            if (include / "pybind11" / "pybind11.h").exists():
                return str(include)
    return None


def extensions() -> list[Extension]:
    """The extensions that are wanted and can be declared."""
    native, cuda = os.environ.get("SEMIVARIO_NATIVE"), os.environ.get("SEMIVARIO_CUDA")
    makers = [native_extension] if native != "0" else []
    if cuda == "1" or (cuda != "0" and find_nvcc() is not None):
        makers.append(cuda_extension)
    include = pybind11_include()
    if include is None:
        if "1" in (native, cuda):
            raise ImportError("neither pybind11 nor torch is installed, whose headers the extensions want")
        print("warning: pybind11 is missing; building without compiled kernels", file=sys.stderr)
        return []
    return [make(include) for make in makers]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
