"""Several pictures of one photo for the backbone: random augmentations, or the ten crops of an evaluation.

Both follow GeoCLIP (Vivanco Cepeda et al., NeurIPS 2023): its training transform, and its evaluation by ten
crops, whose predictions are averaged. The pixels are normalised as the backbone wants, never by ImageNet's
statistics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

CROPS = 10
_RESIZED = 256 / 224  # side of the picture that crops are cut from, in sides of a crop

Views = Callable[[Image.Image, str], Tensor]  # a photo and its id, to (V, 3, H, W)


@dataclass(frozen=True)
class PlainView:
    """The photo as the backbone's own preprocessing shows it: (1, 3, H, W)."""

    preprocess: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image, photo: str) -> Tensor:
        """The one view."""
        return self.preprocess(image)[None]


class AugmentedViews:
    """The photo as it is, and random ones of it: (1 + views, 3, H, W).

    A view depends on the seed, the photo's id and its number alone, so that a run that was interrupted, or
    that other processes go on with, makes the same ones.

    Args:
        preprocess: the backbone's transform.
        config: what it is made of, see `ImageEncoder.preprocess_config`.
        views: augmented views of each photo.
        seed: of the augmentations.
    """

    def __init__(
        self, preprocess: Callable[[Image.Image], Tensor], config: dict[str, Any], views: int, seed: int
    ) -> None:
        self.preprocess, self.views, self.seed = preprocess, views, seed
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(config["size"], interpolation=_interpolation(config)),
                v2.RandomHorizontalFlip(),
                v2.RandomApply(
                    [v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)], p=0.8
                ),
                v2.RandomGrayscale(p=0.2),
                *_to_tensor(config),
            ]
        )

    def __call__(self, image: Image.Image, photo: str) -> Tensor:
        """The photo, then its views."""
        made = [self.preprocess(image)]
        for view in range(1, self.views + 1):
            digest = hashlib.blake2b(f"{self.seed}/{view}/{photo}".encode(), digest_size=8).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(digest, "little", signed=True))
                made.append(self.augment(image))
        return torch.stack(made)


class TenCrops:
    """Four corners, the middle, and their mirror images: (10, 3, H, W).

    Args:
        config: see `ImageEncoder.preprocess_config`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        resized = round(max(config["size"]) * _RESIZED)
        resize = v2.Resize(resized, interpolation=_interpolation(config))
        self.crop = v2.Compose([resize, v2.TenCrop(config["size"])])
        self.to_tensor = v2.Compose(_to_tensor(config))

    def __call__(self, image: Image.Image, photo: str) -> Tensor:
        """The ten crops."""
        return torch.stack([self.to_tensor(part) for part in self.crop(image)])


def _interpolation(config: dict[str, Any]) -> v2.InterpolationMode:
    return v2.InterpolationMode(config["interpolation"])


def _to_tensor(config: dict[str, Any]) -> list[Any]:
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(config["mean"], config["std"]),
    ]
