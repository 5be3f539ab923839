"""What a compiled kernel may need, and which instructions it must and must not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.aot.compilation import Record

# bytes of shared memory a program may have; CUDA C++ programming guide, table of compute capabilities
SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_MEMORY_COLUMNS = 512  # sm_100; beyond it Triton compiles a kernel to a bare trap
WARP_GROUP = 4  # warps that wgmma and tcgen05.mma want
COUNTED = ("registers", "shared_bytes", "tensor_memory_columns")

Table = dict[tuple[str, str, int], Record]


def newest_table(folder: Path, triton_version: str) -> Table:
    """Figures of the newest complete `aot-<date>.json` in `folder`; empty where another Triton made it."""
    files = sorted(folder.glob("aot-????-??-??.json"))
    result = json.loads(files[-1].read_text()) if files else {"triton": None}
    if result["triton"] != triton_version:
        return {}
    return {(row["kernel"], row["label"], row["capability"]): row for row in result["kernels"]}


def problems(kernel: Any, label: str, record: Record, table: Table) -> list[str]:
    """What is wrong with a compilation; an empty list where nothing is.

    Args:
        kernel: the `ShippedKernel`.
        label: its label in the table.
        record: what `compile_kernel` returned.
        table: figures that it may not exceed.
    """
    if "error" in record:
        return [record["error"]]
    found = []
    if record["spill_bytes"]:
        found.append(f"spills {record['spill_bytes']} bytes")
    allowed = SHARED_BYTES[kernel.capability]
    if record["shared_bytes"] > allowed:
        found.append(f"{record['shared_bytes']} bytes of shared memory, {allowed} are there")
    if record["tensor_memory_columns"] > TENSOR_MEMORY_COLUMNS:
        found.append(f"{record['tensor_memory_columns']} columns of tensor memory, 512 are there")
    found += [f"32-bit offset: {line}" for line in record["narrow_offsets"]]
    if record["trigonometry"]:
        found.append("a sine or cosine per pair")
    if record["products"] and _has_float32_products(kernel):
        if record["tf32"] and not kernel.constexprs.get("ALLOW_TF32", False):
            found.append("tf32 where float32 must be exact")
    elif record["products"] and kernel.capability == 90 and "wgmma" not in record["matrix_instructions"]:
        found.append(f"no wgmma, but {record['matrix_instructions']}")
    recorded = table.get((kernel.name, label, kernel.capability), {})
    for what in COUNTED:
        if record[what] > recorded.get(what, record[what]):
            found.append(f"{what}: {record[what]}, {recorded[what]} in the table (make aot)")
    return found


def _has_float32_products(kernel: Any) -> bool:
    return not any(str(kind) in ("*bf16", "*fp16") for kind in kernel.signature.values())
