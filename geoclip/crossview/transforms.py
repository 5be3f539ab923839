"""What Sample4Geo does to images: both views of a place turned together, then each of them disturbed.

A panorama's middle column looks north, as the satellite image's upper edge does; its columns go clockwise.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from geoclip.crossview.dropout import CoarseDropout, GridDropout

Size = tuple[int, int]  # height, width
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class TurnTogether:
    """A random flip and a random quarter turn of a query and its reference.

    Attributes:
        flip: probability that both are mirrored: east becomes west.
        rotate: probability of a turn by 90°, 180° or 270°.
        panorama: the query is a panorama, which rolls when the satellite image turns; otherwise (a drone's
            image, which has no north) only the satellite image turns.
    """

    flip: float = 0.5
    rotate: float = 0.75
    panorama: bool = True

    def __post_init__(self) -> None:
        for name in ("flip", "rotate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: wanted a probability, got {getattr(self, name)}")

    def __call__(self, query: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (…, h, w) and (…, H, W); H and W change places in half of the turns."""
        if torch.rand(()) < self.flip:
            query, reference = query.flip(-1), reference.flip(-1)
        if torch.rand(()) < self.rotate:
            quarters = int(torch.randint(1, 4, ()))
            # counter-clockwise: what lay in the east is now in the north
            reference = reference.rot90(quarters, dims=(-2, -1))
            if self.panorama:
                query = query.roll(-round(query.shape[-1] * quarters / 4), dims=-1)
        return query, reference


def training_transform(size: Size, mean: Numbers, std: Numbers, *, grid_ratio: float = 0.4) -> nn.Module:
    """Published disturbances of a (3, H, W) uint8 image, in their order, then `plain_transform`.

    JPEG of quality 90 to 100 (in half of the images), brightness, contrast, saturation and hue by up to 0.15
    (half), blur or sharpening (0.3), grid or coarse dropout (0.3).

    Args:
        size: height and width of the result.
        mean: of each channel of what the backbone was trained on, in 0 … 1.
        std: its standard deviation.
        grid_ratio: of grid dropout; published are 0.4 for satellite and 0.5 for ground images.
    """
    transform: nn.Module = v2.Compose(
        [
            v2.RandomApply([_JPEG()], p=0.5),
            v2.Resize(size, antialias=True),
            v2.RandomApply([v2.ColorJitter(0.15, 0.15, 0.15, 0.15)], p=0.5),
            v2.RandomApply([v2.RandomChoice([v2.GaussianBlur(5, (0.2, 1.0)), _Sharpen()])], p=0.3),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.RandomChoice([GridDropout(grid_ratio), CoarseDropout()])], p=0.3),
            v2.Normalize(mean, std),
        ]
    )
    return transform


def plain_transform(size: Size, mean: Numbers, std: Numbers) -> nn.Module:
    """Resize a (3, H, W) uint8 image and normalise it: (3, height, width) float32.

    Args:
        size: height and width in pixels.
        mean: of each channel, in 0 … 1.
        std: its standard deviation.
    """
    transform: nn.Module = v2.Compose(
        [v2.Resize(size, antialias=True), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )
    return transform


class _JPEG(nn.Module):
    """Quality 90 to 100, by Pillow: torchvision's own is deprecated with its decoder."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        file = io.BytesIO()
        quality = int(torch.randint(90, 101, ()))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


class _Sharpen(nn.Module):
    """By a random strength."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        factor = 1 + float(torch.empty(()).uniform_(0.2, 0.5))
        sharper: torch.Tensor = v2.functional.adjust_sharpness(image, factor)
        return sharper
