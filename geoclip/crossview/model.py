"""One image encoder for both views."""

from __future__ import annotations

import math

import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn


class CrossViewEncoder(nn.Module):
    """A timm backbone without its classifier, shared by both views, and the logit scale.

    Args:
        backbone: a timm model name; published is convnext_base.fb_in22k_ft_in1k_384.
        pretrained: load timm's weights (a download, the first time), or start from random ones.

    Attributes:
        mean: of each channel of the images that the backbone was trained on, in 0 … 1.
        std: its standard deviation.

    Raises:
        ValueError: timm has no such model.
        RuntimeError: the weights cannot be loaded.
    """

    def __init__(
        self, backbone: str = "convnext_base.fb_in22k_ft_in1k_384", *, pretrained: bool = True
    ) -> None:
        super().__init__()
        if not timm.is_model(backbone):
            raise ValueError(f"backbone: timm has no model {backbone!r}; see timm.list_models()")
        try:
            self.backbone = timm.create_model(backbone, pretrained=pretrained, num_classes=0)
        except Exception as error:
            if not pretrained:
                raise
            # the hub's clients share no base class for "no network"
            raise RuntimeError(f"cannot load the weights of {backbone!r}: {error}") from error
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        config = resolve_data_config({}, model=self.backbone)  # type: ignore[no-untyped-call]
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (n, D) of images (n, 3, H, W), not normalised."""
        features: torch.Tensor = self.backbone(images)
        return features
