"""`python -m benchmarks.cuda_build`: what nvcc's ptxas says of the GPU kernels, as JSON and a Markdown table.

Builds semivario_kernels._native_cuda by setup.py, warnings being errors, once per state of the sources, and
needs no GPU. The exit status is 1 where a kernel spills registers.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semivario-kernels"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
RESULTS = Path("benchmarks/results")
APPENDED_FLAGS = "-Xptxas=-v -Werror=all-warnings"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")


@dataclass(frozen=True)
class Kernel:
    """One kernel compiled for one architecture; bytes per thread, shared memory per block."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


def source_key(paths: Iterable[Path], *parts: str) -> str:
    """Hash of files and of whatever else a build depends on."""
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(paths):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def nvcc_version() -> str | None:
    """nvcc's release, or None where there is none."""
    try:
        done = subprocess.run(["nvcc", "--version"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    found = re.search(r"release [\d.]+, V([\d.]+)", done.stdout)
    return found.group(1) if found else None


def build() -> tuple[Path, str]:
    """The extension and what its compilation printed; cached.

    Raises:
        RuntimeError: the compilation failed.
    """
    sources = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*"), ROOT / "setup.py"]
    folder = CACHE / f"nvcc-{source_key(sources, str(nvcc_version()), sys.version, APPENDED_FLAGS)}"
    log = folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            printed = _build(folder)
            log.with_suffix(".partial").write_text(printed)
            log.with_suffix(".partial").rename(log)
    (library,) = folder.glob("lib/semivario_kernels/_native_cuda*")
    return library, log.read_text()


def _build(folder: Path) -> str:
    environment = {
        **os.environ,
        "SEMIVARIO_CUDA": "1",
        "SEMIVARIO_NATIVE": "0",
        "NVCC_APPEND_FLAGS": APPENDED_FLAGS,
    }
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        folder / "lib",
        "--build-temp",
        folder,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        raise RuntimeError(f"setup.py build_ext failed:\n{done.stdout}")
    return done.stdout


def kernels(log: str) -> list[Kernel]:
    """What ptxas said of every kernel, by name and architecture."""
    found, name, architecture, sizes = [], "", "", (0, 0)
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            name, architecture = entry.groups()
        elif stack := STACK.search(line):
            frame, stores, loads = map(int, stack.groups())
            sizes = frame, stores + loads
        elif used := USED.search(line):
            registers, shared = int(used.group(1)), int(used.group(2) or 0)
            found.append(Kernel(readable(name), architecture, registers, *sizes, shared))
    return sorted(found, key=lambda kernel: (kernel.name, ARCHITECTURES.index(kernel.architecture)))


def readable(mangled: str) -> str:
    """A kernel's own name with its template arguments."""
    text = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    text = re.sub(r"\(semivario::(\w+)\)(\d+)|\(anonymous namespace\)::", _enumerator, text)
    found = re.search(r"(\w+(?:<[^(]*>)?)\(", text)
    return found.group(1) if found else mangled


def _enumerator(match: re.Match[str]) -> str:
    if match.group(1) is None:
        return ""
    headers = "".join(path.read_text() for path in ROOT.glob("csrc/*.h"))
    names = re.search(rf"enum class {match.group(1)} {{([^}}]*)}}", headers)
    return names.group(1).replace(",", " ").split()[int(match.group(2))] if names else match.group(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and tabulate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_build", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    version = nvcc_version()
    if version is None:
        parser.error("nvcc: not found on PATH")
    rows = kernels(build()[1])
    date = datetime.date.today().isoformat()
    stem = options.out / f"nvcc-{date}"
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"date": date, "nvcc": version, "kernels": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(date, version, rows))
    spilling = [row for row in rows if row.spill_bytes]
    for row in spilling:
        print(f"{row.name}, {row.architecture}: {row.spill_bytes} bytes of spills", file=sys.stderr)
    print(f"{len(rows)} compilations, {len(spilling)} with spills. Written: {stem}.json and .md")
    return 1 if spilling else 0


def markdown(date: str, version: str, rows: list[Kernel]) -> str:
    """One line per kernel, the three architectures side by side."""
    lines = [
        f"# CUDA kernels compiled by nvcc, {date}",
        "",
        f"nvcc {version}, no GPU; {len(rows)} compilations, "
        f"{sum(row.spill_bytes > 0 for row in rows)} with spills. Registers are per thread on "
        f"{', '.join(ARCHITECTURES)}, spills the largest of the three, shared memory per block.",
        "",
        "| kernel | registers | spilled bytes | shared KiB |",
        "| --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row.name for row in rows):
        of_kernel = [row for row in rows if row.name == name]
        lines.append(
            f"| {name} | {' / '.join(str(row.registers) for row in of_kernel)} "
            f"| {max(row.spill_bytes for row in of_kernel)} "
            f"| {max(row.shared_bytes for row in of_kernel) / 1024:.0f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
