"""Block sizes, warps and stages per architecture, fixed; `SEMIVARIO_AUTOTUNE=1` is the only way to others.

Registers and shared memory are what `ptxas -v` reports for the policy that needs most; nothing spills.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


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
    No shared memory but what a reduction and a change of layout take, 2 KB.
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

    def forward_options(self, policy: str, capability: int) -> dict[str, Any]:
        """Triton's options of strip_forward: 128 registers, for four programs on a multiprocessor.

        Left to itself ptxas takes 168 (semivariogram) to 178 (rectify); at 128, sm_80 and rectify spill 8 B.
        """
        free = policy == "rectify" or capability < 90
        return self.options if free else {**self.options, "maxnreg": 128}


STRIP_BLOCKS = StripBlocks()
