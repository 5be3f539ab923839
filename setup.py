"""Builds csrc/ into semivario_kernels/_native; everything that is static stands in pyproject.toml.

The kernels are compiled once per instruction set and the best one is chosen at run time, so that a wheel runs
on every processor of its architecture. The extension is linked neither to torch nor to an OpenMP library:
torch loads its own, whose threads ours share. Without a compiler the build warns and goes on; the package
then runs on torch alone.

Environment: SEMIVARIO_NATIVE=1 makes a failing build an error, =0 leaves the extension out;
SEMIVARIO_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import platform
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["csrc/bindings.cpp", "csrc/cpu/dispatch.cpp"]
KERNELS = "csrc/cpu/tile_kernels.cpp"  # compiled once per instruction set
X86_LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ],
}
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g",
]


class BuildNative(build_ext):
    """`build_ext` that compiles the kernels once per instruction set."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one extension."""
        self.announce(f"building {ext.name}", level=2)
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
        for name, instructions in levels.items():
            ext.extra_objects += self.compiler.compile(
                [KERNELS],
                output_dir=str(Path(self.build_temp, name)),
                macros=[("SEMIVARIO_ISA", name)],
                extra_postargs=flags + instructions,
            )
        super().build_extension(ext)


def extensions() -> list[Extension]:
    """The native extension, unless it is not wanted or cannot be declared."""
    wanted = os.environ.get("SEMIVARIO_NATIVE", "")
    if wanted == "0":
        return []
    try:
        import pybind11
    except ImportError:
        if wanted == "1":
            raise
        print("warning: pybind11 is missing; building without semivario_kernels._native", file=sys.stderr)
        return []
    return [
        Extension(
            "semivario_kernels._native",
            SOURCES,
            include_dirs=[pybind11.get_include()],
            depends=[*glob("csrc/*.h"), *glob("csrc/cpu/*"), "setup.py"],
            language="c++",
            optional=wanted != "1",
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
