"""The stages of `make gpu`, without a GPU: what they run, when they are stopped, what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.cases import FLOOR, Case, time_cases
from benchmarks.floor import matrix_rate
from benchmarks.gpu import Ended, bar_lines, build, main, run_side_by_side, verdict_lines
from benchmarks.measure import measure_case
from benchmarks.semivariogram import on_gpu
from benchmarks.table import markdown

ROOT = Path(__file__).parents[2]


def python(code):
    return [sys.executable, "-c", code]


def test_processes_run_side_by_side_and_are_stopped_with_their_children(tmp_path):
    child = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    ended = run_side_by_side(
        [python("print('one')"), python("import sys; print('two'); sys.exit(3)"), python(child)],
        3.0,
        tmp_path / "all.log",
    )
    assert ended.statuses == [0, 3, None]
    assert not ended.well
    assert ended.seconds < 20
    assert ended.output.split() == ["one", "two", "begun"]
    assert [file.name for file in tmp_path.iterdir()] == ["all.log"]


def test_verdicts_of_pytest_are_counted(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('x', ['a b', 'c'])\n"
        "def test_good(x): pass\n"
        "def test_bad(): assert 0\n"
        "def test_left_out(): pytest.skip('why')\n"
    )
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    pytest_here = [sys.executable, "-m", "pytest", "-v", "-c", os.devnull, f"--rootdir={tmp_path}"]
    commands = [[*pytest_here, f"--shard={k}/2", str(tmp_path / "test_three.py")] for k in range(2)]
    lines, well = verdict_lines("tests", run_side_by_side(commands, 120.0, tmp_path / "tests.log"))
    assert lines[0].startswith("tests: 1 failed, 2 passed, 1 skipped ("), lines
    (failed,) = lines[1:]
    assert failed.startswith("  FAILED: ")
    assert failed.endswith("test_three.py::test_bad")
    assert not well


def test_a_run_without_tests_or_time_is_not_well():
    assert verdict_lines("tests", Ended([0], "", 1.0)) == (["tests: no test ended (1 s)"], False)
    lines, well = verdict_lines("tests", Ended([0, None], "a.py::test_x PASSED [ 1%]", 9.0))
    assert lines == ["tests: 1 passed (9 s)", "  1 of 2 processes ran out of time"]
    assert not well
    lines, well = verdict_lines("tests", Ended([0, 2], "a.py::test_x PASSED [ 1%]", 9.0))
    assert lines[1:] == ["  pytest ended with status 2, see tests.log"]
    assert not well
    lines, well = verdict_lines("tests", Ended([0, 1], "a.py::test_x PASSED [ 1%]", 9.0))
    assert lines[1:] == ["  pytest ended with status 1, see tests.log"]
    assert not well


@pytest.mark.parametrize("line", ["import no_such_module", "def broken(:"])
def test_a_file_that_cannot_be_imported_is_an_error(line, tmp_path):
    (tmp_path / "test_good.py").write_text("def test_good(): pass\ndef test_too(): pass\n")
    (tmp_path / "test_broken.py").write_text(f"{line}\n\ndef test_unseen(): pass\n")
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-v", "-c", os.devnull, f"--rootdir={tmp_path}"]
    command += ["--continue-on-collection-errors", str(tmp_path)]
    commands = [[*command, f"--shard={k}/2"] for k in range(2)]
    lines, well = verdict_lines("tests", run_side_by_side(commands, 120.0, tmp_path / "tests.log"))
    assert lines[0].startswith("tests: 1 error, 2 passed ("), lines
    (error,) = lines[1:]
    assert error.startswith("  ERROR: ")
    assert error.endswith("test_broken.py")
    assert not well


def test_memcheck_counts_the_kernels_errors_only(tmp_path, monkeypatch):
    seen = []

    def run(commands, limit_s, log, environment):
        seen.extend(commands)
        return Ended([0], "a.py::test_x PASSED [ 1%]\n========= ERROR SUMMARY: 0 errors", 1.0)

    monkeypatch.setattr(gpu, "SANITIZERS", ("true",))
    monkeypatch.setattr(gpu, "run_side_by_side", run)
    lines, well = gpu.sanitize(60.0, tmp_path)
    assert lines == ["sanitizer: 1 passed (1 s)", "  memcheck: 0 errors"]
    assert well
    (command,) = seen
    before = command[: command.index(sys.executable)]
    assert before[before.index("--report-api-errors") + 1] == "no"


def test_the_build_stage_never_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMIVARIO_NATIVE", "0")
    monkeypatch.setenv("SEMIVARIO_CUDA", "0")
    (line,) = build(60.0, tmp_path, "90")
    assert line.startswith("build: ")
    assert "compiled; see build.log (" in line or "_native_cuda compiled (" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
    assert "torch sees no GPU" in capsys.readouterr().err


def test_the_rows_for_a_gpu_hold_the_sizes_that_have_bars():
    cases = {case.name: case for case in time_cases(torch.device("cuda"), "default")}
    stable = cases["mean-131k"]
    assert (stable.n, stable.m, stable.d, stable.e, stable.dtype) == (4096, 131072, 512, 768, torch.bfloat16)
    assert stable.floor_flops == 4096 * 131072 * (2 * (512 + 768) + 4 * 512)
    assert cases["mean-131k-128mb"].workspace_mb == 128
    assert cases["mean-1m"].m == 1048576
    plain = cases["plain-symmetric"]
    assert (plain.n, plain.m, plain.floor_flops) == (32768, 32768, 32768**2 * 6 * 512)
    assert set(stable.bars) == {FLOOR, "naive", "naive compiled"}


def test_time_is_held_against_the_floor(monkeypatch):
    monkeypatch.setattr("benchmarks.measure.matrix_rate", lambda device, dtype: 1e9)
    case = Case(
        "small", 48, 80, d=24, e=40, workspace_mb=8, rivals=("naive", "default workspace"), bars={FLOOR: 1e9}
    )
    cpu = torch.device("cpu")
    rows = measure_case(case, cpu, budget_s=0, on_round=lambda *_: None)
    ours = next(row for row in rows if row["role"] == "ours")
    assert ours["floor_s"] == pytest.approx(48 * 80 * (2 * 64 + 96) / 1e9)
    assert ours["to_floor"] == pytest.approx(ours["median_s"] / ours["floor_s"])
    assert ours["bars"] == [{"against": FLOOR, "wanted": 1e9, "got": ours["to_floor"], "met": True}]
    assert ours["speedups"]["default workspace"] > 0
    machine = {
        "processor": "P",
        "threads": 1,
        "cores": 1,
        "commit": "c" * 40,
        "versions": {"python": "3", "torch": "2"},
    }
    result = {"machine": machine, "date": "2026-01-01", "times": rows, "memory": []}
    table = markdown(result)
    assert "at the rate of square products taken in the same run: 1 to 1 GFLOP/s in float32." in table
    assert f"{ours['to_floor']:.2f} (≤ 1e+09: met)" in table
    assert len({line.count(" | ") for line in table.splitlines() if line.startswith("|")}) == 1
    (first, *_) = bar_lines(result)
    assert f"{ours['to_floor']:.2f} × floor" in first


def test_semivariogram_rows_are_checked_against_float64(monkeypatch):
    monkeypatch.setattr("benchmarks.semivariogram.on_gpu.matrix_rate", lambda device, dtype: 1e9)
    cases = [on_gpu.GpuCase("few", 200, 24, torch.float32, rounds=2, checked=True, bar_s=100.0)]
    cases.append(on_gpu.GpuCase("none", 1, 24))
    few, none = on_gpu.measure_on_gpu(cases, torch.device("cpu"), on_case=lambda _: None)
    assert few["right"] is True
    assert few["error"] < 1e-5
    assert few["moved_pairs"] == 0
    assert few["floor_s"] == pytest.approx(200 * 199 / 2 * 2 * 24 / 1e9)
    assert few["bars"][0]["met"] is True
    assert "places" in none["failure"] or "rows" in none["failure"]
    machine = {"processor": "P", "threads": 1, "cores": 1, "commit": "c" * 40}
    machine["versions"] = {"python": "3", "torch": "2"}
    result = {"machine": machine, "date": "2026-01-01", "times": [few, none], "memory": []}
    assert "| ≤ 100 s: met |" in on_gpu.markdown(result)
    assert bar_lines(result)[0].endswith("bar seconds 100: met")
    million = next(case for case in on_gpu.CASES if case.n == 1_000_000)
    assert (million.e, million.dtype, million.bar_s, len(on_gpu.EDGES_KM)) == (768, torch.bfloat16, 3.0, 65)


def test_matrix_rate_is_that_of_torch():
    assert 1e8 < matrix_rate(torch.device("cpu"), torch.float32) < 1e14


def test_the_benchmark_imports_only_what_is_there():
    """What a machine with a GPU may lack must not be imported on the way."""
    missing = ("open_clip", "gstools", "lightning", "matplotlib", "pandas", "pyarrow", "rich", "torchvision")
    code = f"""
import sys
for name in {missing!r}:
    sys.modules[name] = None
import benchmarks.__main__, benchmarks.gpu, benchmarks.measure, benchmarks.semivariogram.measure
from benchmarks.progress import Progress
from benchmarks.cases import QUICK
from benchmarks.measure import measure_case
from benchmarks.semivariogram import on_gpu
import torch
rows = measure_case(QUICK[1], torch.device("cpu"), budget_s=0, on_round=lambda *_: None)
assert all(row["failure"] is None for row in rows)
print("fine")
"""
    done = subprocess.run(python(code), cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr
