"""What is measured, and the bars it must reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from semivario_kernels import NegativePolicy

Sizes = Literal["quick", "default", "full"]
NONE = NegativePolicy.none()
SEMIVARIOGRAM = NegativePolicy.semivariogram(hard=5, false=5)
PRODUCTS, NAIVE, COMPILED, OPEN_CLIP, INF_CL = "products", "naive", "naive compiled", "open_clip", "inf_cl"
FLOOR, DEFAULT_WORKSPACE = "floor", "default workspace"


@dataclass(frozen=True)
class Case:
    """One operation at one size, run by every contender in turn.

    Attributes:
        name: what `--only` takes.
        n: queries.
        m: gallery entries.
        d: length of the features.
        e: length of the visual embeddings.
        policy: the negative policy.
        backward: forward and backward, else forward alone.
        reduction: "mean" or "none".
        symmetric: rows and columns.
        dtype: of features and embeddings.
        rivals: whom to run beside the backends; the first is what all are checked against.
        workspace_mb: bound on the loss's workspace; None leaves the default.
        bars: the speed-up over a rival wanted of the default backend, or, against the products or the floor,
            the largest multiple of their time.
    """

    name: str
    n: int
    m: int
    d: int = 512
    e: int = 768
    policy: NegativePolicy = SEMIVARIOGRAM
    backward: bool = True
    reduction: str = "mean"
    symmetric: bool = False
    dtype: torch.dtype = torch.float32
    rivals: tuple[str, ...] = (NAIVE,)
    workspace_mb: int | None = None
    bars: Mapping[str, float] = field(default_factory=dict)

    @property
    def product_passes(self) -> int:
        """How often the similarities must be made: a second time where the gradient cannot ride along.

        With "none" the upstream gradient is unknown in the forward pass, and a symmetric loss needs its
        column sums first.
        """
        return 2 if self.backward and (self.symmetric or self.reduction == "none") else 1

    @property
    def floor_flops(self) -> int:
        """FLOPs of the products with nothing made twice: 2(D+E) a pair, and 4D for the gradients."""
        width = self.d + (self.e if self.policy.reads_dissimilarity else 0)
        return self.n * self.m * (2 * width + (4 * self.d if self.backward else 0))


@dataclass(frozen=True)
class MemoryCase:
    """A forward and backward pass whose peak memory is taken; contender None is the default backend."""

    n: int
    m: int
    d: int = 512
    e: int = 768
    policy: NegativePolicy = SEMIVARIOGRAM
    dtype: torch.dtype = torch.float32
    contender: str | None = None
    workspace_mb: int | None = None
    bar_mib: float | None = None


CPU = [
    Case("forward-8k", 4096, 8192, backward=False, bars={NAIVE: 3.5, PRODUCTS: 1.15}),
    Case("mean", 4096, 8192, rivals=(NAIVE, COMPILED), bars={NAIVE: 2.7, COMPILED: 1.3, PRODUCTS: 1.2}),
    Case("none", 4096, 8192, reduction="none", bars={PRODUCTS: 1.2}),
    Case("symmetric", 4096, 4096, symmetric=True, bars={PRODUCTS: 1.25}),
    Case("plain-forward", 4096, 8192, policy=NONE, backward=False, bars={NAIVE: 1.0}),
    Case("plain", 4096, 8192, policy=NONE, bars={NAIVE: 1.0}),
    Case("plain-symmetric", 4096, 4096, policy=NONE, symmetric=True, rivals=(NAIVE, OPEN_CLIP),
         bars={NAIVE: 1.0, OPEN_CLIP: 1.0}),
]  # fmt: skip
CPU_FULL = [
    Case("forward-16k", 4096, 16384, backward=False, bars={NAIVE: 3.5, PRODUCTS: 1.15}),
    Case("symmetric-8k", 8192, 8192, symmetric=True, bars={PRODUCTS: 1.25}),
    Case("mean-16k", 4096, 16384, rivals=(NAIVE, COMPILED), bars={NAIVE: 2.7, COMPILED: 1.3, PRODUCTS: 1.2}),
    Case("explained", 4096, 8192, policy=NegativePolicy.explained()),
    Case("small", 512, 1024),
]
CPU_MEMORY = [
    MemoryCase(4096, 16384, bar_mib=96),
    MemoryCase(4096, 131072, bar_mib=96),
    MemoryCase(4096, 16384, policy=NONE, bar_mib=96),
    MemoryCase(4096, 131072, policy=NONE, bar_mib=96),
    MemoryCase(4096, 8192, contender=NAIVE),
]

BF16, F32 = torch.bfloat16, torch.float32
CUDA = [
    Case("mean-131k", 4096, 131072, dtype=BF16, rivals=(NAIVE, COMPILED),
         bars={FLOOR: 4.0, NAIVE: 3.0, COMPILED: 1.5}),
    Case("mean-131k-128mb", 4096, 131072, dtype=BF16, workspace_mb=128, rivals=(DEFAULT_WORKSPACE,),
         bars={DEFAULT_WORKSPACE: 1 / 1.6}),
    Case("mean-1m", 4096, 1048576, dtype=BF16, rivals=()),
    Case("plain-symmetric", 32768, 32768, policy=NONE, symmetric=True, dtype=BF16, rivals=(NAIVE, INF_CL),
         bars={FLOOR: 3.0}),
    Case("forward-131k", 4096, 131072, backward=False, dtype=BF16),
    Case("none", 4096, 131072, reduction="none", dtype=BF16),
    Case("symmetric", 16384, 16384, symmetric=True, dtype=BF16),
    Case("plain", 4096, 131072, policy=NONE, dtype=BF16),
    Case("mean-16k", 4096, 16384, dtype=F32),
]  # fmt: skip
CUDA_FULL = [
    Case("mean-16k", 4096, 16384, dtype=BF16, rivals=(NAIVE, COMPILED)),
    Case("mean-131k", 4096, 131072, dtype=F32),
    Case("explained", 4096, 131072, policy=NegativePolicy.explained(), dtype=BF16),
    Case("plain-symmetric-ragged", 32749, 32749, policy=NONE, symmetric=True, dtype=BF16, bars={FLOOR: 3.0}),
    Case("small", 512, 1024, dtype=BF16),
]
# the workspace, and a float32 accumulator of the gallery's gradient
CUDA_MEMORY = [
    MemoryCase(4096, 131072, dtype=BF16, bar_mib=1024 + 256),
    MemoryCase(4096, 131072, dtype=BF16, workspace_mb=128, bar_mib=128 + 256),
    MemoryCase(4096, 131072, dtype=BF16, workspace_mb=32, bar_mib=64),
    MemoryCase(4096, 1048576, dtype=BF16),
    MemoryCase(4096, 131072, dtype=BF16, contender=NAIVE),
]

# one case of every sort, in a second or two
QUICK = [
    Case("forward", 48, 80, d=24, e=40, backward=False, bars={NAIVE: 3.5, PRODUCTS: 1.15}),
    Case("mean", 48, 80, d=24, e=40, bars={NAIVE: 2.7, PRODUCTS: 1.2}),
    Case("none", 48, 80, d=24, e=40, reduction="none"),
    Case("symmetric", 48, 48, d=24, e=40, symmetric=True),
    Case("plain-symmetric", 48, 48, d=24, e=40, policy=NONE, symmetric=True),
]
QUICK_MEMORY = [MemoryCase(256, 1024, d=24, e=40, bar_mib=96)]


def time_cases(device: torch.device, sizes: Sizes) -> list[Case]:
    """Cases to be timed on `device`, in the order of the table."""
    if sizes == "quick":
        return QUICK
    if device.type == "cpu":
        return CPU + CPU_FULL if sizes == "full" else CPU
    return CUDA + CUDA_FULL if sizes == "full" else CUDA


def memory_cases(device: torch.device, sizes: Sizes) -> list[MemoryCase]:
    """Cases whose peak memory is taken on `device`."""
    if sizes == "quick":
        return QUICK_MEMORY
    if device.type == "cpu":
        return CPU_MEMORY
    return CUDA_MEMORY
