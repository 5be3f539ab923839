"""Order of places along a space-filling curve: neighbours in the order are neighbours on the Earth."""

from __future__ import annotations

import torch

BITS = 21  # per axis: 63 bits in all; a cell is 6 m wide


def curve_codes(unit: torch.Tensor) -> torch.Tensor:
    """Morton codes (Morton, 1966) of unit vectors: (n, 3) float64 -> (n,) int64, not negative."""
    codes = torch.zeros(unit.shape[0], dtype=torch.int64, device=unit.device)
    for axis in range(3):
        cell = ((unit[:, axis] + 1) * (2 ** (BITS - 1))).long().clamp_(0, 2**BITS - 1)
        codes |= _spread(cell) << axis
    return codes


def _spread(bits: torch.Tensor) -> torch.Tensor:
    """Put two zero bits after every one of 21 bits."""
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        bits = (bits | (bits << shift)) & mask
    return bits
