"""Block sizes, warps and stages per architecture, fixed.

Registers and shared memory are what `ptxas -v` reports for the policy that needs most; nothing spills.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from semivario_kernels.backends.triton.pair_options import PairOptions


@cache
def capability_of(device: torch.device) -> int:
    """Return the compute capability × 10; 90 where Triton's interpreter stands in for a GPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def at_most_registers(number: int) -> dict[str, Any]:
    """Triton's option for the registers of a thread, which AMD's compiler does not know."""
    return {} if torch.version.hip else {"maxnreg": number}


@dataclass(frozen=True)
class StripBlocks:
    """Blocks of the elementwise kernels between the matrix products, the same on every architecture.

    8 × 128 pairs on 4 warps: a warp reads 512 B of a row at once, a thread's eight pairs share four columns.
    strip_forward takes 124 registers (semivariogram) to 143 (rectify), so that four or three programs share a
    multiprocessor (three nested structures: 193); twice as many pairs would take 212 to 255. Shared memory:
    4 KiB at most.
    """

    rows: int = 8
    columns: int = 128
    steps: int = 8  # blocks that one program walks along its sums
    num_warps: int = 4
    merge: int = 32  # vectors that one program merges
    merge_slots: int = 32
    project_rows: int = 4
    project_columns: int = 512

    @property
    def block(self) -> dict[str, int]:
        """Compile-time sizes of a block."""
        return {"BLOCK_R": self.rows, "BLOCK_C": self.columns}

    @property
    def walk(self) -> dict[str, int]:
        """Compile-time sizes of a walk over blocks."""
        return {**self.block, "STEPS": self.steps}

    @property
    def options(self) -> dict[str, Any]:
        """Triton's options."""
        return {"num_warps": self.num_warps, "enable_fp_fusion": True}

    def forward_options(self, capability: int, policy: str, bytes_of_vu: int) -> dict[str, Any]:
        """Triton's options of strip_forward.

        Left to itself, ptxas would stop at 128 registers and spill: on sm_100, and 8 B on sm_90 for
        "explained" with the dissimilarity's product in float32.
        """
        stops = capability >= 100 or (capability >= 90 and policy == "explained" and bytes_of_vu == 4)
        return {**self.options, **at_most_registers(168)} if stops else self.options


# strip_forward: sm_80 219 registers 4 KiB, sm_90 193 registers 2 KiB, sm_100 167 registers 2 KiB
# strip_gradient: sm_80 80 registers 4 KiB, sm_90 72 registers 4 KiB, sm_100 72 registers 4 KiB
# column_sums: sm_80 108 registers 2 KiB, sm_90 96 registers 2 KiB, sm_100 108 registers 2 KiB
# merge_slots: sm_80 128 registers 0.5 KiB, sm_90 127 registers 0.5 KiB, sm_100 126 registers 0.5 KiB
# project_rows: sm_80 64 registers 4 KiB, sm_90 72 registers 4 KiB, sm_100 64 registers 4 KiB
STRIP_BLOCKS = StripBlocks()


@dataclass(frozen=True)
class FusedBlocks:
    """Blocks of a kernel that multiplies on its own."""

    own: int  # rows of the program's side
    other: int  # rows of the side it walks
    k: int  # dimensions at a time
    num_warps: int
    num_stages: int
    dims: int = 0  # of one accumulator of the gradient, at most; 0 for the sums
    parts: int = 0  # accumulators side by side, at most

    @property
    def block(self) -> dict[str, int]:
        """Compile-time sizes."""
        return {"BLOCK_OWN": self.own, "BLOCK_OTHER": self.other, "BLOCK_K": self.k}

    @property
    def options(self) -> dict[str, Any]:
        """Triton's options."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            **at_most_registers(min(255, 65536 // (32 * self.num_warps))),
            "enable_fp_fusion": True,
        }


# kernel and arithmetic → (oldest capability, bytes of an element) → blocks. The entry of the newest
# architecture that is not newer than the GPU's counts, so that sm_80's are the default. Above each stand
# ptxas's registers of a thread and shared memory of a program, for what needs most; nothing spills. Exact
# float32 products hold their factors in registers: 32 dimensions at a time take up to 65 more than 16, and
# spill.
FUSED_BLOCKS = {
    "sums": {
        # sm_80 255 registers 48 KiB, sm_90 255 registers 72 KiB
        (80, 2): FusedBlocks(128, 64, 64, 8, 3),
        # sm_100 232 registers 48 KiB
        (100, 2): FusedBlocks(64, 64, 64, 8, 3),
        # sm_80 226 registers 6 KiB, sm_90 231 registers 6 KiB, sm_100 228 registers 6 KiB
        (80, 4): FusedBlocks(64, 32, 16, 8, 2),
    },
    # 128 × 64 pairs would spill 16 to 88 B
    "long sums": {
        # sm_80 254 registers 32 KiB, sm_90 214 registers 48 KiB, sm_100 232 registers 48 KiB
        (80, 2): FusedBlocks(64, 64, 64, 8, 3),
        # sm_80 226 registers 6 KiB, sm_90 231 registers 6 KiB, sm_100 228 registers 6 KiB
        (80, 4): FusedBlocks(64, 32, 16, 8, 2),
    },
    # 64 × 64 pairs would spill 188 to 204 B on sm_100
    "nested sums": {
        # sm_80 178 registers 24 KiB, sm_90 168 registers 36 KiB, sm_100 172 registers 36 KiB
        (80, 2): FusedBlocks(64, 32, 64, 8, 3),
        # sm_80 226 registers 6 KiB, sm_90 231 registers 6 KiB, sm_100 228 registers 6 KiB
        (80, 4): FusedBlocks(64, 32, 16, 8, 2),
    },
    "gradient": {
        # sm_80 255 registers 16 KiB
        (80, 2): FusedBlocks(64, 16, 64, 8, 2, 128, 4),
        # sm_90 255 registers 24 KiB
        (90, 2): FusedBlocks(64, 32, 64, 8, 2, 64, 8),
        # sm_100 222 registers 24 KiB
        (100, 2): FusedBlocks(64, 32, 64, 8, 2, 256, 1),
        # sm_80 188 registers 20 KiB, sm_90 211 registers 20 KiB, sm_100 208 registers 20 KiB
        (80, 4): FusedBlocks(32, 32, 16, 8, 2, 128, 1),
    },
    # 64 × 32 pairs would spill 8 to 32 B on sm_90
    "long gradient": {
        # sm_80 255 registers 16 KiB, sm_90 254 registers 32 KiB
        (80, 2): FusedBlocks(64, 16, 64, 8, 2, 128, 4),
        # sm_100 222 registers 24 KiB
        (100, 2): FusedBlocks(64, 32, 64, 8, 2, 256, 1),
        # sm_80 188 registers 20 KiB, sm_90 211 registers 20 KiB, sm_100 208 registers 20 KiB
        (80, 4): FusedBlocks(32, 32, 16, 8, 2, 128, 1),
    },
}


def fused_blocks(name: str, capability: int, itemsize: int) -> FusedBlocks:
    """Return the blocks of the newest architecture that is not newer than the GPU's."""
    table = FUSED_BLOCKS[name]
    return table[max(key for key in table if key[0] <= capability and key[1] == itemsize)]


def sums_name(options: PairOptions, excludes: bool) -> str:
    """Which of `FUSED_BLOCKS` serves `fused_statistics`.

    f brings two more sums, a chord model two distances where the policy compares h with a range.
    """
    two_distances = options.chord and options.policy in ("threshold", "penalty")
    if len(options.kinds) > 2:
        return "nested sums"
    long = options.policy == "rectify" or len(options.kinds) > 1 or two_distances or excludes
    return "long sums" if long else "sums"


def gradient_name(options: PairOptions) -> str:
    """Which of `FUSED_BLOCKS` serves `fused_gradient`."""
    long = options.policy in ("rectify", "penalty") or len(options.kinds) > 1
    return "long gradient" if long else "gradient"
