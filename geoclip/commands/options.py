"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

    from geoclip.image_encoder import ImageEncoder
    from geoclip.weights import Weights
    from semivario_kernels import VariogramModel

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


def add_gallery_source(parser: argparse.ArgumentParser) -> None:
    """Adds --gallery."""
    parser.add_argument(
        "--gallery",
        default="upstream",
        help="places to choose from: upstream (GeoCLIP's 100,000), a .csv, a .npy or a folder of embeddings",
    )


def add_gallery(parser: argparse.ArgumentParser) -> None:
    """Adds --gallery and --gallery-cache."""
    add_gallery_source(parser)
    parser.add_argument(
        "--gallery-cache",
        metavar="FOLDER",
        help="keeps the places' features, once computed; semivario-kernels/galleries in the user's cache "
        "folder if left out",
    )


def add_support(parser: argparse.ArgumentParser) -> None:
    """Adds --variogram."""
    parser.add_argument(
        "--variogram",
        metavar="FILE",
        help="semivariogram that `geoclip variogram` wrote: the answer is then the place with the most "
        "probability around it, weighed by the correlation at each distance, not the most probable place (a "
        "probability that is printed is the place's own, and need not fall with the rank)",
    )


def add_logit_scale(parser: argparse.ArgumentParser) -> None:
    """Adds --logit-scale."""
    parser.add_argument(
        "--logit-scale",
        type=float,
        metavar="SCALE",
        help="that turns cosines into logits of the probabilities, which radii and the answer by --variogram "
        "read and the most probable place does not: what `geoclip eval --calibrate` printed for other "
        "photos; the model's own if left out",
    )


def support_variogram(options: argparse.Namespace) -> VariogramModel | None:
    """The semivariogram that --variogram names."""
    from semivario_kernels import VariogramModel

    return None if options.variogram is None else VariogramModel.load(options.variogram)


def gallery_cache(options: argparse.Namespace) -> Path:
    """The folder that --gallery-cache names."""
    from geoclip.gallery_cache import default_cache

    return default_cache() if options.gallery_cache is None else Path(options.gallery_cache)


def add_choice_of_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --weights."""
    parser.add_argument(
        "--weights",
        choices=("averaged", "last"),
        help="of a checkpoint of `geoclip fit`: the moving average or the last step's; the average where the "
        "run kept one if left out",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, --weights, --backbone and --pretrained."""
    parser.add_argument(
        "--checkpoint",
        default="upstream",
        help="what `geoclip fit` or `geoclip export` wrote, or upstream: the official GeoCLIP weights",
    )
    add_choice_of_weights(parser)
    parser.add_argument("--backbone", help="overrides the one that the checkpoint names")
    parser.add_argument("--pretrained", help="overrides the one that the checkpoint names")


def check_at_least(options: argparse.Namespace, **least: int) -> None:
    """ValueError names an option that is too small, before the long work."""
    for name, low in least.items():
        if (value := getattr(options, name)) < low:
            raise ValueError(f"--{name.replace('_', '-')}: wanted at least {low}, got {value}")


def say_trained(checkpoint: Path) -> None:
    """Name what a training wrote, in the first of its processes."""
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0:
        print(f"trained: {checkpoint}")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; a GPU where there is one if left out")


def choose_device(name: str | None) -> torch.device:
    """The device that --device asks for.

    Raises:
        ValueError: torch knows no such device, or has none here.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: wanted one that is here, got {name!r}: {reason}") from error
    return device


def tower_of(weights: Weights, options: argparse.Namespace) -> ImageEncoder:
    """The image tower that makes the embeddings which the weights take.

    Raises:
        ValueError: the weights were trained on embeddings of no photo and --backbone is not given, or the
            backbone makes embeddings of another length.
    """
    own = weights.model.image_encoder
    if own.backbone is not None and options.backbone is None and options.pretrained is None:
        return own  # its backbone may have been trained, too
    backbone = options.backbone or weights.backbone
    if backbone is None:
        raise ValueError(
            f"--backbone: {weights.source} was trained on embeddings of no photo; wanted the open_clip model "
            "that makes such embeddings, got None"
        )
    config = None if options.backbone else weights.backbone_config
    tower = image_encoder(backbone, options.pretrained or weights.pretrained, config)
    weights.check_embeddings(f"--backbone {backbone}", tower.embedding_dim)
    return tower.to(weights.model.logit_scale.device)


def image_encoder(
    backbone: str, pretrained: str | None, backbone_config: dict[str, Any] | None = None
) -> ImageEncoder:
    """The image tower that --backbone and --pretrained ask for.

    Args:
        backbone: open_clip's name, or a .json file that configures one.
        pretrained: tag, checkpoint file, or "none"; a file is noted by its whole path.
        backbone_config: of a name that open_clip may not know.

    Raises:
        FileNotFoundError: `backbone` ends in .json and there is no such file.
        ValueError: the file holds no configuration, or open_clip does not know the name.
    """
    from geoclip.image_encoder import ImageEncoder

    if backbone.endswith(".json"):
        try:
            backbone_config = json.loads(Path(backbone).read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"--backbone: {backbone}: no such file") from None
        except ValueError as error:
            raise ValueError(f"--backbone: {backbone} is damaged: {error}") from error
        if not isinstance(backbone_config, dict):
            raise ValueError(f"--backbone: {backbone}: wanted an open_clip configuration, a JSON object")
        backbone = Path(backbone).stem
    if pretrained == "none":
        pretrained = None
    elif pretrained is not None and Path(pretrained).is_file():
        pretrained = str(Path(pretrained).absolute())
    return ImageEncoder(backbone, pretrained, backbone_config=backbone_config)
