"""A kernel around the Triton pair arithmetic, one value per pair, for the tests.

Run as a script it compiles the kernel for sm_90, which needs no GPU, and prints what the compiler says.
"""

import json

import torch
import triton
import triton.language as tl

from semivario_kernels.backends.triton.arithmetic import (
    block_logits,
    chord_km,
    great_circle_km,
    load_numbers,
    pair_terms,
    squared_chords,
)
from semivario_kernels.backends.triton.pair_options import PairOptions, pair_parameters

BLOCK = 256


@triton.jit
def evaluate(
    p,
    q,
    d,
    out,
    stride,
    count,
    parameters,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
    MAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write h, the chord, a, b, f and the logit of s·cos = 0.4 with vu = 1 − d, six rows of `out`."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    px = tl.load(p + index, mask=mask, other=0.0)
    py = tl.load(p + stride + index, mask=mask, other=0.0)
    pz = tl.load(p + 2 * stride + index, mask=mask, other=0.0)
    qx = tl.load(q + index, mask=mask, other=0.0)
    qy = tl.load(q + stride + index, mask=mask, other=0.0)
    qz = tl.load(q + 2 * stride + index, mask=mask, other=0.0)
    near, far = squared_chords(px, py, pz, qx, qy, qz)
    h = great_circle_km(near, far)
    chord = chord_km(near)
    tl.store(out + index, h, mask=mask)
    tl.store(out + stride + index, chord, mask=mask)
    numbers = load_numbers(parameters, KINDS)
    unlikeness = tl.load(d + index, mask=mask, other=0.0)
    a, b, f = pair_terms(px, py, pz, qx, qy, qz, unlikeness, numbers, POLICY, KINDS, CHORD, SOURCE, FAST)
    zero = tl.zeros((BLOCK,), tl.float32)
    tl.store(out + 2 * stride + index, zero + a, mask=mask)
    tl.store(out + 3 * stride + index, zero + b, mask=mask)
    tl.store(out + 4 * stride + index, zero + f, mask=mask)
    logits, a, f = block_logits(
        zero + 0.1, 1.0 - unlikeness, zero + 4.0, zero > 0.0, zero > 0.0, px, py, pz, qx, qy, qz, numbers,
        POLICY, KINDS, CHORD, SOURCE, FAST, MAPPED,
    )  # fmt: skip
    tl.store(out + 5 * stride + index, logits, mask=mask)


def evaluated(policy, model, p, q, d, *, fast):
    """(6, n) of float32 unit vectors p and q, (n, 3) each, and dissimilarities d, (n,)."""
    reads = policy.reads_dissimilarity
    n = len(p)
    out = torch.full((6, n), torch.nan, device=p.device)
    evaluate[(triton.cdiv(n, BLOCK),)](
        p.T.contiguous(),
        q.T.contiguous(),
        d,
        out,
        n,
        n,
        pair_parameters(policy, model if reads else None, p.device),
        **options_of(policy, model, fast=fast).constexprs(),
        BLOCK=BLOCK,
    )
    return out


def options_of(policy, model, *, fast):
    """What is compiled for a policy and a model."""
    reads = policy.reads_dissimilarity
    return PairOptions(
        policy.kind,
        tuple(structure[0] for structure in model.structures) if reads else (),
        reads and model.metric == "chord",
        "embeddings" if reads else "",
        fast,
    )


def compilations():
    """The kernel for sm_90, for every policy and both ways of `fast`."""
    from test_policy import POLICIES

    from semivario_kernels import VariogramModel
    from semivario_kernels.backends.triton.shipped import ShippedKernel

    model = VariogramModel(("stable", "gaussian"), 0.1, (0.3, 0.4), (90.0, 4000.0), (0.6, 1.0))
    types = dict.fromkeys(("p", "q", "d", "out", "parameters"), "*fp32") | {"stride": "i32", "count": "i32"}
    for policy, _ in POLICIES.values():
        for fast in (True, False):
            constants = {**options_of(policy, model, fast=fast).constexprs(), "BLOCK": BLOCK}
            label = f"{policy.kind} fast={fast}"
            yield ShippedKernel.of("evaluate", evaluate, types, constants, {"num_warps": 4}, 90, label)


if __name__ == "__main__":
    from benchmarks.aot.compilation import cached, compile_kernel

    kernels = list(compilations())
    found = {kernel.label: (cached(kernel) or compile_kernel(kernel)).get("error") for kernel in kernels}
    print(json.dumps(found))
