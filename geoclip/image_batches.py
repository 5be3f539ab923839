"""Batches of photos read from their files, with augmentation."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from geoclip.image_encoder import ImageEncoder, read_image
from geoclip.photos import PhotoList


def training_transform(
    encoder: ImageEncoder, augmentation: dict[str, Any] | None
) -> Callable[[Image.Image], Tensor]:
    """The backbone's own training transform: its size, interpolation and normalisation, with random crops.

    Args:
        encoder: loads its backbone now.
        augmentation: fields of open_clip's `AugmentationCfg`, such as {"scale": [0.5, 1.0]}; None for its
            own.

    Raises:
        ValueError: fields that `AugmentationCfg` has not.
    """
    from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2

    try:
        settings = AugmentationCfg(**(augmentation or {}))
    except TypeError as error:
        raise ValueError(f"augmentation: {error}") from error
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(
        PreprocessCfg(**encoder.preprocess_config), is_train=True, aug_cfg=settings
    )
    return transform


class ImageRows(Dataset[dict[str, Any]]):
    """Photos that are fetched by whole batches; what is random about one comes from (seed, step, row) alone.

    A batch of rows is {"images" (n, 3, H, W), "rows" (n,), "latlon" (n, 2), "broken"}: photos that cannot be
    read are left out, and "broken" says for each which one and why.

    Args:
        photos: the data.
        transform: from a PIL image to (3, H, W).
        seed: of the augmentation.
    """

    def __init__(self, photos: PhotoList, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.photos, self.transform, self.seed = photos, transform, seed

    def __getitems__(self, step_and_rows: list[int]) -> dict[str, Any]:
        step, *rows = step_and_rows
        read, images, broken = [], [], []
        for row in rows:
            path = self.photos.images.name(row)
            try:
                image = read_image(self.photos.images.read(row), path)
            except (OSError, ValueError) as error:
                broken.append(f"{path}\t{' '.join(str(error).split())}")
                continue
            images.append(self._augmented(image, step, row))
            read.append(row)
        if not read:
            raise ValueError(f"none of the {len(rows)} photos of step {step} can be read: {broken[0]}")
        index = np.array(read)
        return {
            "images": torch.stack(images),
            "rows": torch.from_numpy(index),
            "latlon": torch.from_numpy(self.photos.latlon[index]),
            "broken": broken,
        }

    def _augmented(self, image: Image.Image, step: int, row: int) -> Tensor:
        state = np.random.SeedSequence((self.seed, step, row)).generate_state(2, np.uint64)
        # open_clip's transforms draw from torch's global generator, timm's also from Python's
        before = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(state[0]))
                random.seed(int(state[1]))
                return self.transform(image)
        finally:
            random.setstate(before)
