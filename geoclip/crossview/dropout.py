"""Grid dropout and coarse dropout of image tensors: squares that become zero."""

from __future__ import annotations

import torch
from torch import nn


class GridDropout(nn.Module):
    """Zeroes the corner of every cell of a regular grid (Chen et al., 2020, "GridMask").

    Args:
        ratio: side of the zeroed square, as a share of the cell's.
        cells: cells along the width; they are square.
    """

    def __init__(self, ratio: float, cells: int = 10) -> None:
        super().__init__()
        if not 0 < ratio < 1:
            raise ValueError(f"ratio: wanted between 0 and 1, got {ratio}")
        self.ratio, self.cells = ratio, cells

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return a copy of the (…, H, W) image with holes."""
        side = max(2, image.shape[-1] // self.cells)
        hole = max(1, min(side - 1, round(side * self.ratio)))
        rows, columns = (torch.arange(n, device=image.device) % side < hole for n in image.shape[-2:])
        return image.masked_fill(rows[:, None] & columns, 0)


class CoarseDropout(nn.Module):
    """Zeroes some rectangles at random places (DeVries and Taylor, 2017, "Cutout").

    Args:
        holes: fewest and most rectangles.
        side: shortest and longest side, as a share of the image's height.
    """

    def __init__(self, holes: tuple[int, int] = (10, 25), side: tuple[float, float] = (0.1, 0.2)) -> None:
        super().__init__()
        self.holes, self.side = holes, side

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return a copy of the (…, H, W) image with holes."""
        image = image.clone()
        height, width = image.shape[-2:]
        shortest, longest = (max(1, int(share * height)) for share in self.side)
        for _ in range(_between(*self.holes)):
            rows, columns = (min(_between(shortest, longest), n) for n in (height, width))
            top, left = _between(0, height - rows), _between(0, width - columns)
            image[..., top : top + rows, left : left + columns] = 0
        return image


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
