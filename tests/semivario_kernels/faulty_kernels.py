"""Kernels with one fault each, to see that the ahead-of-time checks find it; none of them ever runs."""

import json

import triton
import triton.language as tl

from benchmarks.aot.budget import problems
from benchmarks.aot.compilation import cached, compile_kernel
from semivario_kernels.backends.triton.shipped import ShippedKernel


@triton.jit
def copy_rows(source, target, stride, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        row = row.to(tl.int64)
    at = row[:, None] * stride + tl.arange(0, BLOCK)[None, :]
    tl.store(target + at, tl.load(source + at))


@triton.jit
def copy_one_row(source, target, width, BLOCK: tl.constexpr):
    first = tl.program_id(0) * BLOCK * 2048
    at = first + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < width))


@triton.jit
def walk_down(source, target, stride, rows, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    offset = 0
    for _ in range(rows):
        total += tl.load(source + offset + at)
        offset += stride * BLOCK
    tl.store(target + at, total)


@triton.jit
def sine(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.sin(tl.load(source + at)))


@triton.jit
def multiply(a, b, target, PRECISION: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    i, k, j = tl.arange(0, BLOCK), tl.arange(0, DEPTH), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(8):
        left, right = tl.load(a + i[:, None] * DEPTH + k), tl.load(b + k[:, None] * BLOCK + j)
        a += BLOCK * DEPTH
        b += BLOCK * DEPTH
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(target + i[:, None] * BLOCK + j, total)


def kernel(function, label, dtypes, capability=90, options=None, attrs=None, **constants):
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else dtypes.get(name, "*fp32") for name in names}
    aligned = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(names) if signature[name][0] == "*"}
    options = {"num_warps": 4, "enable_fp_fusion": True, **(options or {})}
    return ShippedKernel(
        function.__name__, function, signature, constants, options, capability, label, aligned
    )


HALF = {"a": "*fp16", "b": "*fp16"}
INT32 = {"stride": "i32", "rows": "i32", "width": "i32"}
KERNELS = [
    kernel(copy_rows, "sound", INT32, WIDE=True, BLOCK=32),
    kernel(copy_rows, "narrow rows", INT32, WIDE=False, BLOCK=32),
    kernel(copy_one_row, "narrow product of products", INT32, BLOCK=64),
    kernel(walk_down, "narrow loop", INT32, BLOCK=64),
    kernel(sine, "sine", {}, BLOCK=64),
    kernel(multiply, "sound half", HALF, PRECISION="ieee", BLOCK=64, DEPTH=64),
    kernel(multiply, "sound float32", {}, PRECISION="ieee", BLOCK=64, DEPTH=16),
    kernel(multiply, "tf32", {}, PRECISION="tf32", BLOCK=64, DEPTH=64),
    kernel(multiply, "no wgmma", HALF, PRECISION="ieee", BLOCK=32, DEPTH=64, options={"num_warps": 1}),
    kernel(copy_rows, "spills", INT32, WIDE=True, BLOCK=64, options={"maxnreg": 32}),
    kernel(multiply, "shared", HALF, PRECISION="ieee", BLOCK=64, DEPTH=128, options={"num_stages": 8}),
    kernel(multiply, "no such dtype", {"a": "*fp16"}, PRECISION="ieee", BLOCK=64, DEPTH=64),
]

if __name__ == "__main__":
    found = {one.label: problems(one, one.label, cached(one) or compile_kernel(one), {}) for one in KERNELS}
    print(json.dumps(found))
