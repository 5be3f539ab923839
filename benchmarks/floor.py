"""The rate of this machine's matrix products, which every time is held against on a GPU."""

from __future__ import annotations

import torch

from benchmarks.timing import seconds_of

SIDE = {"cuda": 8192, "cpu": 512}
ROUNDS = 10


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of ten square products by torch.mm into memory that is already there."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = [seconds_of(lambda: torch.mm(a, b, out=out), device) for _ in range(ROUNDS)]
    return 2 * side**3 / min(times)
