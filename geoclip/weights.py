"""Trained weights as a command's user names them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from geoclip.finetune import FineTunedTower
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
        embedding_info: what is known of the embeddings of its training, in the words of `ImageEncoder.source`
            and of stores; "tuned" where the backbone itself was trained.
        choice: "averaged" or "last", of a checkpoint; None for a release.
    """

    source: str
    model: GeoCLIP
    embedding_info: dict[str, Any]
    choice: Literal["averaged", "last"] | None = None

    @property
    def backbone(self) -> str | None:
        """open_clip model that made the embeddings of the training; None where that is not known."""
        return self.embedding_info.get("backbone")

    @property
    def pretrained(self) -> str | None:
        """The backbone's weights."""
        return self.embedding_info.get("pretrained")

    @property
    def backbone_config(self) -> dict[str, Any] | None:
        """The backbone's configuration, where it came from a file."""
        return self.embedding_info.get("backbone_config")

    @property
    def tuned(self) -> str | None:
        """Fingerprint of the backbone's trained weights, which a run's own image encoder has."""
        return self.embedding_info.get("tuned")

    def check_embeddings(self, name: str, dim: int, info: dict[str, Any] | None = None) -> None:
        """Refuse embeddings that the model was not trained for, as far as both sides know.

        Args:
            name: what messages call them.
            dim: their length.
            info: what their store says of itself; None for a backbone as open_clip has it.

        Raises:
            ValueError: `dim` is not the length that the model takes, or another backbone made them.
        """
        wanted = self.model.image_encoder.embedding_dim
        if dim != wanted:
            raise ValueError(f"{name}: embeddings of {dim} numbers, wanted the {wanted} of {self.source}")
        tuned = None if info is None else info.get("tuned")
        if self.tuned is not None and tuned != self.tuned:
            own = self.model.image_encoder.backbone is not None
            run = f"{self.source} --weights {self.choice}" if own else "of the run that trained it"
            got = "a backbone as it was" if tuned is None else "a backbone fine-tuned otherwise"
            raise ValueError(
                f"{name}: embeddings of {got}, wanted those of the one that {self.source} fine-tuned: "
                f"geoclip embed PHOTOS OUT --checkpoint {run} makes them"
            )
        if info is None or self.backbone is None or info.get("backbone") is None:
            return
        if tuned != self.tuned:
            raise ValueError(
                f"{name}: embeddings of a fine-tuned backbone, wanted those of {self.backbone} as it was, "
                f"which {self.source} was trained with"
            )
        for part in ("backbone", "pretrained", "backbone_config"):
            if part in info and part in self.embedding_info:
                there, here = _comparable(info, part), _comparable(self.embedding_info, part)
                if there != here:
                    raise ValueError(
                        f"{name}: embeddings whose {part} is {there}, wanted the {here} of {self.source}"
                    )


def _comparable(info: dict[str, Any], part: str) -> Any:
    value = info[part]
    if part == "pretrained" and value is not None:
        return Path(value).name  # a file may lie elsewhere on another machine
    if part == "backbone" and info.get("pretrained") == "openai":
        return value.removesuffix("-quickgelu")  # open_clip gives these weights QuickGELU under either name
    return value


def _fingerprint(tower: FineTunedTower) -> str:
    """Of what was trained of a backbone; its name says the rest."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()[:16]


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
    if choice is not None and (source == UPSTREAM or Path(source).is_dir()):
        raise ValueError(f"weights: {source} holds one set of weights; wanted no choice, got {choice!r}")
    if source == UPSTREAM:
        model = GeoCLIP.from_upstream(ImageEncoder(None, embedding_dim=768))
        info: dict[str, Any] = {
            "backbone": OPEN_CLIP_L14["model"],
            "pretrained": OPEN_CLIP_L14["pretrained"],
        }
    elif Path(source).is_dir():
        model = GeoCLIP.from_pretrained(Path(source))
        info = {name: value for name, value in model.image_encoder.source().items() if value is not None}
    else:
        module = load_trained(source, weights=choice)
        choice = choice or ("last" if module.averaged is None else "averaged")
        model, info = module.model, dict(module.embedding_info)
        if module.tower is not None:
            info["tuned"] = _fingerprint(module.tower)
    return Weights(source, model.to(device).eval(), info, choice)
