"""The shipped Triton kernels compiled for sm_80, sm_90 and sm_100, and the checks of what comes out of it."""

import dataclasses
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.amd.compiler import HIPOptions

from benchmarks.aot.addresses import narrow_offsets
from benchmarks.aot.budget import newest_table
from benchmarks.aot.covering import covering
from semivario_kernels.backends.triton import binned, configurations, topk
from semivario_kernels.policy import POLICY_KINDS
from semivario_kernels.variogram import KINDS

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


def test_a_test_run_covers_every_kernel_architecture_dtype_policy_and_kind(compiled):
    """Counted from the labels, without what chose the compilations."""
    rows, _ = compiled
    assert len(rows) <= LIMIT
    pairs = {(row["kernel"], row["capability"]) for row in rows}
    kernels = {kernel for kernel, _ in pairs}
    assert kernels >= {"fused_statistics", "fused_gradient", "merge_gradient", "strip_forward", "keep_best"}
    assert kernels >= {"strip_gradient", "column_sums", "merge_slots", "project_rows", "bin_tile"}
    assert kernels >= {"distances", "unlikeness"}
    assert pairs == {(kernel, capability) for kernel in kernels for capability in (80, 90, 100)}
    for kernel in ("fused_statistics", "fused_gradient", "strip_forward"):
        words = {word for row in rows if row["kernel"] == kernel for word in row["label"].split()}
        assert words >= {"bf16", "fp16", "fp32"}
    words = {word for row in rows for word in row["label"].split()}
    assert words >= set(POLICY_KINDS)
    assert {kind for word in words for kind in word.split("+")} >= set(KINDS)
    assert words >= {
        "chord",
        "features",
        "columns",
        "exclude",
        "splits",
        "symmetric",
        "quarters",
        "histogram",
    }


LISTED = """
import json
from benchmarks.aot.pool import shipped_kernels
print(json.dumps([(kernel.name, kernel.capability, kernel.label) for kernel in shipped_kernels()]))
"""


def test_everything_ships_in_every_dtype_on_every_architecture():
    done = run("-c", LISTED)
    assert done.returncode == 0, done.stderr
    labels = {}
    for kernel, capability, label in json.loads(done.stdout):
        dtype, *words = label.split()
        labels.setdefault((kernel, capability, dtype), set()).add(" ".join(words))
    for capability, dtype in product((80, 90, 100), ("bf16", "fp16", "fp32")):
        for kernel in ("fused_statistics", "fused_gradient"):
            words = {word for label in labels[kernel, capability, dtype] for word in label.split()}
            assert words >= {"chord", "features", *POLICY_KINDS}
            assert {kind for word in words for kind in word.split("+")} >= set(KINDS)
        reading = {label.split()[0] for label in labels["strip_forward", capability, dtype]}
        assert reading >= {"semivariogram", "explained", "threshold", "rectify", "penalty"}
        for kernel in ("strip_gradient", "merge_gradient", "project_rows"):
            assert (kernel, capability, dtype) in labels


def ptxas_says(rows, kernel, blocks, capabilities):
    """Words of configurations.py on an entry of its tables."""
    words = []
    for capability in capabilities:
        found = [
            row
            for row in rows
            if (row["kernel"], row["capability"]) == (kernel, capability) and row["blocks"] == blocks
        ]
        assert found, f"{kernel} {blocks} on sm_{capability} is not in the results (make aot)"
        most = {figure: max(row[figure] for row in found) for figure in ("registers", "shared_bytes")}
        kib = f"{most['shared_bytes'] / 1024:.1f}".removesuffix(".0")
        words.append(f"sm_{capability} {most['registers']} registers {kib} KiB")
    return "# " + ", ".join(words)


def test_the_configurations_state_what_ptxas_reports():
    rows = json.loads(sorted((ROOT / "benchmarks/results").glob("aot-????-??-??.json"))[-1].read_text())[
        "kernels"
    ]
    lines = [line.strip() for line in Path(configurations.__file__).read_text().splitlines()]
    wanted = []
    for name, table in configurations.FUSED_BLOCKS.items():
        kernel = "fused_statistics" if "sums" in name else "fused_gradient"
        for (oldest, itemsize), blocks in table.items():
            served = [
                capability
                for capability in (80, 90, 100)
                if configurations.fused_blocks(name, capability, itemsize) is table[oldest, itemsize]
            ]
            sizes = [blocks.own, blocks.other, blocks.k]
            sizes += [blocks.dims, blocks.parts] if blocks.dims else []
            words = ptxas_says(rows, kernel, sizes, served)
            wanted.append((words, f"({oldest}, {itemsize}): FusedBlocks({sizes[0]}, {sizes[1]}, {sizes[2]},"))
    for words, entry in wanted:
        at = [k for k, line in enumerate(lines) if line == words]
        assert any(lines[k + 1].startswith(entry) for k in at), f"above {entry} wanted: {words}"
    strips = configurations.STRIP_BLOCKS
    for kernel, blocks in (
        ("strip_forward", [strips.rows, strips.columns]),
        ("strip_gradient", [strips.rows, strips.columns]),
        ("column_sums", [strips.rows, strips.columns]),
        ("merge_slots", [strips.merge, strips.merge_slots]),
        ("project_rows", [strips.project_rows, strips.project_columns]),
    ):
        words = ptxas_says(rows, kernel, blocks, (80, 90, 100)).replace("# ", f"# {kernel}: ")
        assert words in lines, f"wanted: {words}"


def test_amds_compiler_knows_the_options(monkeypatch):
    """No AMD GPU has run them; there, Triton refuses an option that it does not know."""
    known = {field.name for field in dataclasses.fields(HIPOptions)}
    monkeypatch.setattr(torch.version, "hip", "7.0")
    options = [
        topk.options_of(16),
        binned.options_of(64),
        *(configurations.STRIP_BLOCKS.forward_options(c, "explained", 4) for c in (80, 90, 100)),
        *(blocks.options for table in configurations.FUSED_BLOCKS.values() for blocks in table.values()),
    ]
    for some in options:
        assert some.keys() <= known
    monkeypatch.setattr(torch.version, "hip", None)
    assert topk.options_of(16)["maxnreg"] == 128


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


@pytest.mark.timeout(300)
def test_the_kernel_of_the_value_tests_compiles():
    """The interpreter, which runs it where there is no GPU, takes more than the compiler."""
    done = run(Path(__file__).with_name("pair_kernel.py"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {label.split()[0] for label in found} == set(POLICY_KINDS)
    assert found == dict.fromkeys(found)


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
