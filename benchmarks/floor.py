"""The rates of this machine's matrix products and of its memory, which times are held against."""

from __future__ import annotations

import torch

from benchmarks.timing import seconds_of

SIDE = {"cuda": 8192, "cpu": 512}
ROUNDS = 10
COPIED_MIB = 256  # more than a cache holds


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of ten square products by torch.mm into memory that is already there."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = [seconds_of(lambda: torch.mm(a, b, out=out), device) for _ in range(ROUNDS)]
    return 2 * side**3 / min(times)


def copy_rate() -> float:
    """Bytes/s, read and written together, of the fastest of ten copies in the CPU's memory."""
    source = torch.ones(COPIED_MIB * 2**20, dtype=torch.uint8)
    out = torch.empty_like(source)
    times = [seconds_of(lambda: out.copy_(source), source.device) for _ in range(ROUNDS)]
    return 2 * source.numel() / min(times)
