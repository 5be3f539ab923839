"""The shipped Triton kernels compiled for sm_80, sm_90 and sm_100, and the checks of what comes out of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.aot.addresses import narrow_offsets
from benchmarks.aot.budget import newest_table
from benchmarks.aot.covering import covering

ROOT = Path(__file__).parents[2]
LIMIT = 60  # compilations in one test run


def run(*arguments):
    """Run Python without the interpreter of Triton, which this process may be running in."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}:{Path(__file__).parent}"
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aot")
    done = run("-m", "benchmarks.aot", "--cover", LIMIT, "--check", "--out", folder)
    assert done.returncode == 0, done.stderr
    (table,) = folder.glob("*.md")
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())["kernels"], table.read_text()


@pytest.mark.timeout(900)  # sixty compilations of 2 to 4 s where nothing is cached
def test_shipped_kernels_stay_within_their_budget(compiled):
    rows, table = compiled
    assert 0 < len(rows) <= LIMIT
    architectures = {}
    for row in rows:
        architectures.setdefault(row["kernel"], set()).add(row["capability"])
        assert row["problems"] == []
        assert row["spill_bytes"] == 0
        assert 0 < row["registers"] <= 255
        assert row["narrow_offsets"] == []
        assert row["trigonometry"] is False
        assert row["tensor_memory_columns"] <= 512
        assert f"| {row['kernel']} | {row['label']} | sm_{row['capability']} |" in table
    assert set(map(frozenset, architectures.values())) == {frozenset({80, 90, 100})}


def test_low_precision_products_use_wgmma_on_sm_90(compiled):
    rows, _ = compiled
    for row in rows:
        if row["products"] and row["capability"] == 90 and {"bf16", "fp16"} & set(row["label"].split()):
            assert "wgmma" in row["matrix_instructions"]


@pytest.mark.timeout(300)
def test_every_fault_is_found():
    done = run("-m", "faulty_kernels")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = {
        "sound": None,
        "narrow rows": "32-bit offset",
        "narrow product of products": "32-bit offset",
        "narrow loop": "32-bit offset",
        "sine": "a sine or cosine per pair",
        "sound half": None,
        "sound float32": None,
        "tf32": "tf32 where float32 must be exact",
        "no wgmma": "no wgmma, but ['mma.sync']",
        "spills": "spills",
        "shared": "262144 bytes of shared memory, 232448 are there",
        "no such dtype": "Both operands must be same dtype. Got fp16 and fp32",
    }
    assert found.keys() == wanted.keys()
    for name, words in wanted.items():
        if words is None:
            assert found[name] == []
        else:
            (problem,) = found[name]
            assert words in problem


def test_a_kernel_may_need_no_more_than_the_table_says(tmp_path):
    from types import SimpleNamespace

    from benchmarks.aot.budget import problems

    record = {
        "spill_bytes": 0,
        "registers": 80,
        "shared_bytes": 1024,
        "tensor_memory_columns": 0,
        "narrow_offsets": [],
        "trigonometry": False,
        "products": 0,
    }
    row = {"kernel": "walk", "label": "fp32", "capability": 90, **record}
    (tmp_path / "aot-2026-01-02.json").write_text(json.dumps({"triton": "9.9", "kernels": [row]}))
    (tmp_path / "aot-2026-01-01.json").write_text(json.dumps({"triton": "9.8", "kernels": []}))
    (tmp_path / "aot-2026-01-03-cover.json").write_text("not looked at")
    kernel = SimpleNamespace(name="walk", capability=90, signature={}, constexprs={})
    table = newest_table(tmp_path, "9.9")
    assert problems(kernel, "fp32", record, table) == []
    assert problems(kernel, "fp32", {**record, "registers": 79}, table) == []
    assert problems(kernel, "fp32", {**record, "registers": 81}, table) == [
        "registers: 81, 80 in the table (make aot)"
    ]
    assert problems(kernel, "bf16", {**record, "registers": 81}, table) == []
    assert newest_table(tmp_path, "9.8") == {}


def test_offsets_carried_by_a_loop_are_followed():
    ttir = """
    tt.func public @walk(%x: !tt.ptr<f32>, %stride: i32, %rows: i32) {
      %c0 = arith.constant 0 : i32
      %c64 = arith.constant 64 : i32
      %step = OPERATION : i32
      %sum = scf.for %i = %c0 to %rows step %c64 iter_args(%at = %c0) -> (i32)  : i32 {
        %p = tt.addptr %x, %at : !tt.ptr<f32>, i32
        %next = arith.addi %at, %step : i32
        scf.yield %next : i32
      }
    }"""
    assert narrow_offsets(ttir.replace("OPERATION", "arith.addi %stride, %c64")) == []
    (line,) = narrow_offsets(ttir.replace("OPERATION", "arith.muli %stride, %c64"))
    assert line == "%step = arith.muli %stride, %c64 : i32"


def test_covering_holds_every_trait_and_then_as_many_pairs_as_fit():
    traits = [frozenset((kernel, dtype, arch)) for kernel in "ab" for dtype in "xyz" for arch in "12"]
    few = covering(traits, 3)
    assert set().union(*(traits[k] for k in few)) == set("abxyz12")
    more = covering(traits, 12)
    assert len(more) < len(traits)
    assert more == sorted(more)
    for pair in ("ax", "bz", "1x", "2y", "a1", "b2"):
        assert any(set(pair) <= traits[k] for k in more)
    with pytest.raises(ValueError, match="limit: 2 compilations leave out"):
        covering(traits, 2)
