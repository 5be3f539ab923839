"""Order of places along a space-filling curve: neighbours in the order are neighbours on the Earth."""

from __future__ import annotations

import torch

LEVELS = 18  # cells of a face: 2^18 a side, about 40 m


def curve_codes(unit: torch.Tensor) -> torch.Tensor:
    """Codes along Hilbert's curve (Hilbert, 1891) on the six faces of a cube around the Earth, face by face.

    Args:
        unit: (n, 3) float64 unit vectors.

    Returns:
        (n,) int64, not negative.
    """
    axis = unit.abs().argmax(dim=1)
    along = unit.gather(1, axis[:, None])[:, 0]
    first, second = (unit.gather(1, ((axis + k) % 3)[:, None])[:, 0] for k in (1, 2))
    # the angle instead of its tangent makes the cells of a face nearly equal
    x, y = (
        ((torch.atan(side / along.abs()) / (torch.pi / 2) + 0.5) * 2**LEVELS).long().clamp_(0, 2**LEVELS - 1)
        for side in (first, second)
    )
    return (2 * axis + (along < 0).long()) << (2 * LEVELS) | _hilbert(x, y)


def _hilbert(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Position on the curve of the cells (x, y) of a square, from the largest quarter to the smallest."""
    code = torch.zeros_like(x)
    for level in range(LEVELS - 1, -1, -1):
        right, upper = x >> level & 1, y >> level & 1
        code += (3 * right ^ upper) << (2 * level)
        # each quarter holds the curve again, turned so that its ends meet those of its neighbours
        side = (1 << (level + 1)) - 1
        flip = (upper == 0) & (right == 1)
        x, y = torch.where(flip, side - x & side, x & side), torch.where(flip, side - y & side, y & side)
        x, y = torch.where(upper == 0, y, x), torch.where(upper == 0, x, y)
    return code
