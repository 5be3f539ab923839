"""One kernel compiled for one architecture by Triton and its own ptxas, and what came out of it.

Nothing of this needs a GPU or a driver. What is known of a compilation is kept in a cache by its content: the
kernel's source with everything it calls, its signature, constants and options, Triton's version and the files
of this package.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.aot.addresses import narrow_offsets

Record = dict[str, Any]
BYTES_PER_INSTRUCTION = 16  # of every architecture since sm_70
# libdevice's functions are inlined on the way to PTX, the approximations are not
TRIGONOMETRY = re.compile(
    r"\bmath\.a?(?:sin|cos|tan)2?\b|\b(?:sin|cos)\.approx|__nv_(?:fast_)?a?(?:sin|cos|tan)"
)


def cache_folder() -> Path:
    """Beside the packages that the Makefile keeps."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "semivario-kernels" / "aot"


def content_key(kernel: Any) -> str:
    """Hash of everything the compilation depends on."""
    import triton

    parts = [
        triton.__version__,
        _harness(),
        kernel.function.cache_key,
        *(repr(sorted(part.items(), key=str)) for part in _arguments(kernel)),
        str(kernel.capability),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _harness() -> str:
    files = (Path(__file__), Path(__file__).with_name("addresses.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _arguments(kernel: Any) -> tuple[dict[Any, Any], ...]:
    return tuple(
        dict(part or {}) for part in (kernel.signature, kernel.constexprs, kernel.attrs, kernel.options)
    )


def cached(kernel: Any) -> Record | None:
    """What is known of `kernel`, or None."""
    try:
        return json.loads((cache_folder() / f"{content_key(kernel)}.json").read_text())
    except (OSError, ValueError):
        return None


def compile_kernel(kernel: Any) -> Record:
    """Compile `kernel`, a `ShippedKernel`, and keep what came out.

    Returns:
        registers and instructions of a thread, bytes it spills (stores and loads), bytes of shared memory and
        columns of tensor memory of a program, number of warps, the matrix instructions and trigonometry found
        in the PTX, and the 32-bit products that addresses are made of. With "error" alone where the compiler
        refuses the kernel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constexprs, attrs, options = _arguments(kernel)
    source = ASTSource(kernel.function, signature, constexprs, attrs)
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
        triton.knobs.cache.dir = folder  # Triton's own cache would hide ptxas's report
        triton.knobs.nvidia.dump_ptxas_log = True
        with contextlib.redirect_stdout(log):
            try:
                compiled = triton.compile(
                    source, target=GPUTarget("cuda", kernel.capability, 32), options=options
                )
            except Exception as error:  # whatever it is, the table has to say so
                return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}
        record = {
            **_ptxas_report(log.getvalue()),
            "shared_bytes": compiled.metadata.shared,
            "tensor_memory_columns": getattr(compiled.metadata, "tmem_size", None) or 0,
            "warps": compiled.metadata.num_warps,
            "instructions": _code_bytes(compiled.asm["cubin"]) // BYTES_PER_INSTRUCTION,
            "products": len(re.findall(r"\btt\.dot\b|\btt\.dot_scaled\b", compiled.asm["ttir"])),
            **_ptx_facts(compiled.asm["ptx"]),
            "trigonometry": bool(TRIGONOMETRY.search(compiled.asm["ttir"] + compiled.asm["ptx"])),
            "narrow_offsets": narrow_offsets(compiled.asm["ttir"]),
        }
    _keep(content_key(kernel), record)
    return record


def _keep(key: str, record: Record) -> None:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump(record, file)
    os.replace(file.name, folder / f"{key}.json")


def _ptxas_report(log: str) -> Record:
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise RuntimeError(f"ptxas said nothing of registers and spills: {log!r}")
    stores, loads = map(int, spills.groups())
    return {"registers": int(registers[1]), "spill_bytes": stores + loads}


def _ptx_facts(ptx: str) -> Record:
    body = "\n".join(
        line for line in ptx.splitlines() if not line.lstrip().startswith((".loc", ".file", "//"))
    )
    return {
        "matrix_instructions": sorted(set(re.findall(r"\b(wgmma|tcgen05\.mma|mma\.sync)\b", body))),
        "tf32": bool(re.search(r"\.tf32\b", body)),
    }


def _code_bytes(cubin: bytes) -> int:
    """Bytes of machine code: the .text sections of the 64-bit ELF file."""
    section_table, entry_size, entries, names_at = (
        struct.unpack_from("<Q", cubin, 0x28)[0],
        *struct.unpack_from("<HHH", cubin, 0x3A),
    )

    def section(index: int) -> tuple[int, int, int]:
        at = section_table + index * entry_size
        name = struct.unpack_from("<I", cubin, at)[0]
        return (name, *struct.unpack_from("<QQ", cubin, at + 0x18))

    names = section(names_at)[1]
    return sum(
        size for name, _, size in map(section, range(entries)) if cubin[names + name :].startswith(b".text.")
    )
