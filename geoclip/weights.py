"""Trained weights as a command's user names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from geoclip.fit import load_trained
from geoclip.image_encoder import ImageEncoder
from geoclip.model import GeoCLIP
from geoclip.release import OPEN_CLIP_L14

UPSTREAM = "upstream"


@dataclass(frozen=True)
class Weights:
    """A model that takes cached embeddings.

    Attributes:
        source: where the weights came from.
        model: in evaluation mode, on the device asked for.
        backbone: open_clip model that made the embeddings of its training; None where that is not known.
        pretrained: the backbone's weights.
        backbone_config: the backbone's configuration, where it came from a file.
        tuned: whether the backbone itself was trained: the model's own image encoder has it then.
        choice: "averaged" or "last", of a checkpoint; None for a release.
    """

    source: str
    model: GeoCLIP
    backbone: str | None
    pretrained: str | None
    tuned: bool = False
    choice: Literal["averaged", "last"] | None = None
    backbone_config: dict[str, Any] | None = None

    def check_embeddings(self, name: str, dim: int) -> None:
        """Refuse embeddings of another length.

        Raises:
            ValueError: `dim` is not the length that the model takes.
        """
        wanted = self.model.image_encoder.embedding_dim
        if dim != wanted:
            raise ValueError(f"{name}: embeddings of {dim} numbers, wanted the {wanted} of {self.source}")


def load_weights(
    source: str, device: torch.device, choice: Literal["averaged", "last"] | None = None
) -> Weights:
    """Read weights for evaluation.

    Args:
        source: "upstream" (the official weights), a checkpoint of `geoclip fit`, or a folder that
            `geoclip export` wrote.
        device: where the model goes.
        choice: of a checkpoint, as in `load_trained`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds something else, or not the weights chosen.
        UpstreamUnavailable: the official weights are asked for and cannot be fetched.
    """
    tuned = False
    if choice is not None and (source == UPSTREAM or Path(source).is_dir()):
        raise ValueError(f"weights: {source} holds one set of weights; wanted no choice, got {choice!r}")
    config: dict[str, Any] | None = None
    if source == UPSTREAM:
        model = GeoCLIP.from_upstream(ImageEncoder(None, embedding_dim=768))
        named: dict[str, str | None] = {**OPEN_CLIP_L14}
    elif Path(source).is_dir():
        model = GeoCLIP.from_pretrained(Path(source))
        encoder = model.image_encoder
        named, config = {"model": encoder.backbone, "pretrained": encoder.pretrained}, encoder.backbone_config
    else:
        module = load_trained(source, weights=choice)
        choice = choice or ("last" if module.averaged is None else "averaged")
        model, info, tuned = module.model, module.embedding_info, module.tower is not None
        named, config = (
            {"model": info.get("backbone"), "pretrained": info.get("pretrained")},
            info.get("backbone_config"),
        )
    return Weights(
        source, model.to(device).eval(), named["model"], named["pretrained"], tuned, choice, config
    )
