"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from geoclip.image_encoder import ImageEncoder

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DEFAULTS = argparse.ArgumentDefaultsHelpFormatter


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Adds --backbone and --pretrained."""
    parser.add_argument(
        "--backbone", default="ViT-L-14", help="open_clip model, or a .json file that configures one"
    )
    parser.add_argument(
        "--pretrained", default="openai", help="open_clip tag, checkpoint file, or none: random weights"
    )


def add_gallery(parser: argparse.ArgumentParser) -> None:
    """Adds --gallery."""
    parser.add_argument(
        "--gallery",
        default="upstream",
        help="places to choose from: upstream (GeoCLIP's 100,000), a .csv, a .npy or a folder of embeddings",
    )


def image_encoder(backbone: str, pretrained: str | None) -> ImageEncoder:
    """The image tower that --backbone and --pretrained ask for.

    Raises:
        FileNotFoundError: `backbone` ends in .json and there is no such file.
    """
    from geoclip.image_encoder import ImageEncoder

    if backbone.endswith(".json"):
        import open_clip

        if not Path(backbone).is_file():
            raise FileNotFoundError(f"--backbone: {backbone}: no such file")
        open_clip.add_model_config(backbone)
        backbone = Path(backbone).stem
    return ImageEncoder(backbone, None if pretrained == "none" else pretrained)
