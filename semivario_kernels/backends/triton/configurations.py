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


@dataclass(frozen=True)
class StripBlocks:
    """Blocks of the elementwise kernels between the matrix products, the same on every architecture.

    8 × 128 pairs on 4 warps: a warp reads 512 B of a row at once, a thread's eight pairs share four columns.
    strip_forward takes 124 registers (semivariogram) to 143 (rectify), so that four or three programs share a
    multiprocessor; twice as many pairs would take 212 to 255. Shared memory: 512 B.
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

    def forward_options(self, capability: int) -> dict[str, Any]:
        """Triton's options of strip_forward: on sm_100 ptxas would stop at 128 registers and spill."""
        return {**self.options, "maxnreg": 168} if capability >= 100 else self.options


STRIP_BLOCKS = StripBlocks()


@dataclass(frozen=True)
class FusedBlocks:
    """Blocks of a kernel that multiplies on its own."""

    own: int  # rows of the program's side
    other: int  # rows of the side it walks
    k: int  # dimensions at a time
    num_warps: int
    num_stages: int
    dims: int = 0  # of the gradient's accumulator, at most; 0 for the sums

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
            "maxnreg": min(255, 65536 // (32 * self.num_warps)),
            "enable_fp_fusion": True,
        }


# (oldest capability, bytes of an element) → blocks. ptxas reports up to 255 registers and no spills. Shared
# memory of the sums: 72 KB at 128 × 64, 48 KB at 64 × 64, 6 KB at 64 × 32; of the gradient 20 to 24 KB, on
# sm_100 with all 512 columns of tensor memory. Exact float32 products hold their factors in registers: 32
# dimensions at a time take up to 65 more than 16, and spill.
STATISTICS_BLOCKS = {
    (80, 2): FusedBlocks(128, 64, 64, 8, 3),
    (100, 2): FusedBlocks(64, 64, 64, 8, 3),  # 128 × 64 would spill 48 B
    (80, 4): FusedBlocks(64, 32, 16, 8, 2),
}
# f needs two more sums, with which 128 × 64 pairs would spill 16 to 36 B, a nested model up to 88 B
LONG_STATISTICS_BLOCKS = {
    (80, 2): FusedBlocks(64, 64, 64, 8, 3),
    (80, 4): FusedBlocks(64, 32, 16, 8, 2),
}
GRADIENT_BLOCKS = {
    (80, 2): FusedBlocks(64, 32, 64, 8, 2, 256),
    (80, 4): FusedBlocks(32, 32, 16, 8, 2, 128),
}


def fused_blocks(table: dict[tuple[int, int], FusedBlocks], capability: int, itemsize: int) -> FusedBlocks:
    """Return the blocks of the newest architecture that is not newer than the GPU's."""
    return table[max(key for key in table if key[0] <= capability and key[1] == itemsize)]


def statistics_blocks(options: PairOptions, capability: int, itemsize: int) -> FusedBlocks:
    """Return the blocks of `fused_statistics`."""
    long = options.policy == "rectify" or len(options.kinds) > 1
    return fused_blocks(LONG_STATISTICS_BLOCKS if long else STATISTICS_BLOCKS, capability, itemsize)
