"""`python -m benchmarks.gpu`: on a machine with an NVIDIA GPU, build, test, sanitize, benchmark in minutes.

It uses the Python that runs it (torch, Triton, NumPy, scikit-learn, pytest, hypothesis) and needs no network.
Every stage has its share of the time and is stopped when that is over; what it wrote until then is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGES = ("build", "tests", "sanitizer", "benchmark")
SHARE = {"build": 0.12, "tests": 0.42, "sanitizer": 0.12, "benchmark": 0.34}
MINUTES = 9.0
TESTS = tuple(
    f"tests/semivario_kernels/test_{name}.py"
    for name in ("cuda*", "triton_[blm]*", "triton_autotune", "native_*")
)
CUDA_EXTENSION = "_native_cuda"
PROCESSES = 12  # of the tests: each compiles its own kernels, on a core of its own
TOOLKIT = Path("/usr/local/cuda")  # where it is not on PATH
SANITIZERS = ("compute-sanitizer", str(TOOLKIT / "bin" / "compute-sanitizer"))
VERDICT = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.MULTILINE)
NOT_IMPORTED = re.compile(r"^ERROR ([^\s:]+\.py)(?= - |$)", re.MULTILINE)  # in pytest's short summary


@dataclass(frozen=True)
class Ended:
    """How a stage ended: exit statuses, None where a process ran out of time, and what was printed."""

    statuses: list[int | None]
    output: str
    seconds: float

    @property
    def well(self) -> bool:
        """Whether every process ended with 0."""
        return all(status == 0 for status in self.statuses)


def run_side_by_side(
    commands: Sequence[Sequence[str]], limit_s: float, log: Path, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run commands at the same time, each with its own log file beside `log`, which gets all of them."""
    begin = time.monotonic()
    parts = [log.with_suffix(f".{number}") for number in range(len(commands))]
    running = []
    for command, part in zip(commands, parts, strict=True):
        with part.open("w") as file:
            running.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                    start_new_session=True,  # so that its children can be stopped with it
                )
            )
    statuses: list[int | None] = []
    for process in running:
        try:
            statuses.append(process.wait(max(0.0, begin + limit_s - time.monotonic())))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            statuses.append(None)
    output = "\n".join(part.read_text(errors="replace") for part in parts)
    log.write_text(output)
    for part in parts:
        part.unlink()
    return Ended(statuses, output, time.monotonic() - begin)


def build(limit_s: float, out: Path, architecture: str | None) -> list[str]:
    """Compile csrc/ in place, for this GPU's architecture only; the package runs without it."""
    environment = {"SEMIVARIO_CUDA": "1", "CUDA_HOME": str(TOOLKIT), **os.environ}
    if architecture is not None:
        environment["SEMIVARIO_CUDA_ARCHITECTURES"] = architecture
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    ended = run_side_by_side([command], limit_s, out / "build.log", environment)
    libraries = (ROOT / "semivario_kernels").glob("_native*")
    built = sorted(file.name.split(".")[0] for file in libraries if file.suffix in (".so", ".pyd"))
    words = " and ".join(built) if built else "nothing"
    missing = "" if ended.well and CUDA_EXTENSION in built else "; see build.log"
    return [f"build: {words} compiled{missing} ({ended.seconds:.0f} s)"]


def run_tests(limit_s: float, out: Path) -> tuple[list[str], bool]:
    """Run the GPU tests in three processes to four cores, at most twelve."""
    files = [str(file.relative_to(ROOT)) for pattern in TESTS for file in sorted(ROOT.glob(pattern))]
    cores = os.cpu_count() or 1
    shards = max(1, min(PROCESSES, 3 * cores // 4))
    options = ["-v", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    commands = [
        [sys.executable, "-m", "pytest", *options, f"--shard={k}/{shards}", *files] for k in range(shards)
    ]
    # the oracle's float64 sums run on the CPU, a thread of each process on every core would stand in line
    environment = {"OMP_NUM_THREADS": str(max(1, cores // shards))}
    ended = run_side_by_side(commands, limit_s, out / "tests.log", environment)
    return verdict_lines("tests", ended)


def verdict_lines(stage: str, ended: Ended) -> tuple[list[str], bool]:
    """Lines of the summary on a run of pytest, and whether all went well."""
    verdicts = dict(VERDICT.findall(ended.output))
    verdicts |= dict.fromkeys(NOT_IMPORTED.findall(ended.output), "ERROR")
    counts = Counter(verdicts.values())
    words = ", ".join(f"{counts[word]} {word.lower()}" for word in sorted(counts)) or "no test ended"
    late = sum(status is None for status in ended.statuses)
    # pytest's status 1: a test failed, and its line says which; 5: a share of the tests that holds none
    explained = (0, 5, None, 1) if counts["FAILED"] + counts["ERROR"] else (0, 5, None)
    broken = [status for status in ended.statuses if status not in explained]
    lines = [f"{stage}: {words} ({ended.seconds:.0f} s)"]
    lines += [f"  {late} of {len(ended.statuses)} processes ran out of time"] * bool(late)
    lines += [f"  pytest ended with status {status}, see {stage}.log" for status in broken]
    lines += [f"  {word}: {name}" for name, word in verdicts.items() if word in ("FAILED", "ERROR")]
    return lines, len(lines) == 1 and counts["PASSED"] > 0


def sanitize(limit_s: float, out: Path) -> tuple[list[str], bool]:
    """Run the small tests under compute-sanitizer's memcheck, where the tool is present."""
    tool = next(filter(None, map(shutil.which, SANITIZERS)), None)
    if tool is None:
        return ["sanitizer: compute-sanitizer is not there"], True
    files = [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob(TESTS[0]))]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9"]
    command += ["--report-api-errors", "no"]  # libraries ask for what a driver may refuse, and go on without
    command += [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "sanitizer", *files]
    # without torch's caching allocator every tensor is an allocation of its own, whose ends are watched
    ended = run_side_by_side(
        [command], limit_s, out / "sanitizer.log", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    )
    lines, well = verdict_lines("sanitizer", ended)
    found = re.findall(r"ERROR SUMMARY: (\d+) error", ended.output)
    lines += [f"  memcheck: {found[-1] if found else 'unknown number of'} errors"]
    return lines, well and found[-1:] == ["0"]


def benchmark(limit_s: float, out: Path, seconds: float) -> tuple[list[str], bool]:
    """Run `python -m benchmarks --device cuda`, the semivariogram first, which takes the shorter time."""
    before, end = time.time(), time.monotonic() + limit_s
    lines, well = [], True
    for subject, share in (("semivariogram", 0.3), ("loss", 1.0)):
        command = [sys.executable, "-m", "benchmarks", subject, "--device", "cuda"]
        command += ["--seconds", str(seconds), "--out", str(out)]
        log = out / f"benchmark-{subject}.log"
        ended = run_side_by_side([command], share * (end - time.monotonic()), log)
        words = "done" if ended.well else "stopped" if ended.statuses == [None] else "FAILED"
        lines += [f"{subject}: {words}{'' if ended.well else f', see {log.name}'} ({ended.seconds:.0f} s)"]
        well &= ended.well
    for file in sorted(out.glob("*.json")):
        if file.stat().st_mtime >= before:
            lines += bar_lines(json.loads(file.read_text()))
    return lines, well


def bar_lines(result: dict) -> list[str]:
    """One line per row of ours that has a bar or a floor."""
    lines = []
    for row in result["times"]:
        if row["role"] != "ours" or row["median_s"] is None:
            continue
        words = [f"{row['median_s'] * 1e3:,.2f} ms"]
        if row.get("to_floor"):
            words.append(f"{row['to_floor']:.2f} × floor")
        words += [f"{name} × {ratio:.2f}" for name, ratio in row.get("speedups", {}).items()]
        for bar in row.get("bars", []):
            words.append(f"bar {bar['against']} {bar['wanted']:.3g}: {'met' if bar['met'] else 'MISSED'}")
        lines.append(f"  {row['case']} ({row['contender']}): {', '.join(words)}")
    for row in result["memory"]:
        if row["failure"] is None:
            bar = "" if row["bar_mib"] is None else f" (bar {row['bar_mib']:g}: {row['met']})"
            lines.append(
                f"  memory {row['n']:,} × {row['m']:,} {row['contender']}: {row['extra_mib']:.1f} MiB{bar}"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; the exit status is 1 where a test fails or the benchmark finds a wrong result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="stages to run")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"for all of it (default: {MINUTES:g})"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="timed rounds of a benchmark (default: 2)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results and logs"
    )
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    stages: dict[str, float] = {stage: SHARE[stage] for stage in STAGES if stage in options.only}
    end = time.monotonic() + 60 * options.minutes
    summary = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}"]
    well = True
    for number, stage in enumerate(stages):
        # what earlier stages did not need goes to the later ones
        share = stages[stage] / sum(list(stages.values())[number:])
        limit_s = share * (end - time.monotonic())
        print(f"{stage}: up to {limit_s:.0f} s", flush=True)
        if stage == "build":
            lines, right = build(limit_s, out, "".join(map(str, torch.cuda.get_device_capability()))), True
        elif stage == "tests":
            lines, right = run_tests(limit_s, out)
        elif stage == "sanitizer":
            lines, right = sanitize(limit_s, out)
        else:
            lines, right = benchmark(limit_s, out, options.seconds)
        print("\n".join(lines), flush=True)
        summary += lines
        well &= right
    (out / "summary.txt").write_text("\n".join(summary) + "\n")
    print("", *summary, sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
