"""GeoCLIP's image encoder: a frozen open_clip visual tower and a small trainable head."""

import difflib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor, nn

from semivario_kernels.extras import install_command

# A photo of 128 megapixels takes 400 MB to decode; a few kilobytes can claim to be one of a thousand times
# that.
MAX_PIXELS = 128_000_000
# Scaling the short side of a strip up to the backbone's input would make the long side huge.
MAX_ASPECT = 100
# EXIF orientation to what undoes it
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: str | os.PathLike[str] | bytes, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read a photo the way a person sees it: EXIF orientation applied, RGB, the first frame, 8 bits.

    What is transparent shows white.

    Args:
        source: A path, or the bytes of an image file.
        name: What messages call the image; the path by default.
        max_pixels: Larger images are refused by their header, before anything is decoded.

    Raises:
        ValueError: The file is no image, a broken one or too large a one; the message names it.
        OSError: The file cannot be opened, for instance FileNotFoundError.
    """
    if not isinstance(source, bytes):
        name = name or os.fspath(source)
        with open(source, "rb") as file:
            source = file.read()
    name = name or "image"
    if not source:
        raise ValueError(f"{name}: not a readable image: the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it takes for a bomb at 89 megapixels; the limit here is `max_pixels`
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ValueError(
                        f"{width:,} × {height:,} pixels are {width * height / 1e6:,.0f} megapixels, wanted "
                        f"at most {max_pixels / 1e6:,.0f}"
                    )
                if max(width, height) > MAX_ASPECT * min(width, height):
                    raise ValueError(
                        f"{width:,} × {height:,} pixels: a strip, wanted sides within 1:{MAX_ASPECT}"
                    )
                return _to_rgb(_upright(image))
    except UnidentifiedImageError:  # its own message shows the file object
        raise ValueError(f"{name}: not a readable image: no format that is known") from None
    # What Pillow raises depends on the format and on the damage: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(f"{name}: not a readable image: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a PNG's EXIF may follow its pixels
    try:
        # ImageOps.exif_transpose also writes the other tags anew, and fails where one of them is damaged
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged block raises anything; the pixels are good
        method = None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion makes everything above 255 white
        eight_bits = np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8)
        return Image.fromarray(eight_bits).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def import_open_clip() -> Any:
    """open_clip, which takes 70 MB with timm: training from cached embeddings does without.

    Raises:
        ModuleNotFoundError: It is not installed; names the extra that brings it.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"an image backbone needs the module {error.name!r}: {install_command('train')}", name=error.name
        ) from error
    return open_clip


def _make_known(backbone: str, config: dict[str, Any]) -> None:
    """Tell open_clip of a configuration, which it takes as a file."""
    open_clip = import_open_clip()

    missing = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in config]
    if missing:
        raise ValueError(
            f"backbone {backbone!r}: wanted open_clip's embed_dim, vision_cfg and text_cfg, "
            f"got no {missing[0]}"
        )
    if open_clip.get_model_config(backbone) != config:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{backbone}.json"
            file.write_text(json.dumps(config))
            open_clip.add_model_config(file)


class ImageEncoder(nn.Module):
    """Images to features: frozen backbone embeddings (n, E), then the head ``mlp`` (n, output_dim).

    The backbone is loaded when it is first needed and comes with its own preprocessing. It is no
    submodule: parameters, state dict, train() and wrappers see the head alone, and the weights of the
    backbone stay those that ``backbone`` and ``pretrained`` name. It runs on the device of the images.

    Args:
        backbone: An open_clip model name, or None for a head alone, fed with cached embeddings.
        pretrained: An open_clip tag, the path of a local checkpoint, or None for random weights, the same
            at every call. A checkpoint trained with QuickGELU needs a ``-quickgelu`` backbone.
        embedding_dim: E; asked from open_clip by default, needed where ``backbone`` is None.
        output_dim: Length of the features.
        backbone_config: open_clip's configuration of a backbone that open_clip does not bring along.

    Raises:
        ValueError: Unknown backbone, no open_clip configuration, or ``embedding_dim`` missing or in conflict
            with the backbone.
        ModuleNotFoundError: A backbone is asked for and open_clip is missing; names the extra that brings it.
    """

    def __init__(
        self,
        backbone: str | None = "ViT-L-14",
        pretrained: str | os.PathLike[str] | None = "openai",
        *,
        embedding_dim: int | None = None,
        output_dim: int = 512,
        backbone_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pretrained = None if pretrained is None else os.fspath(pretrained)
        self.backbone_config = backbone_config
        if backbone is not None:
            open_clip = import_open_clip()

            if backbone_config is not None:
                _make_known(backbone, backbone_config)
            config = open_clip.get_model_config(backbone)
            if config is None:
                known = open_clip.list_models()
                names = ", ".join(difflib.get_close_matches(backbone, known, n=5, cutoff=0.3) or known[:5])
                raise ValueError(
                    f"backbone {backbone!r} is unknown, wanted one of open_clip's {len(known)} "
                    f"({names}, …) or the .json file that configures it"
                )
            if embedding_dim not in (None, config["embed_dim"]):
                raise ValueError(f"embedding_dim is {embedding_dim}, {backbone} has {config['embed_dim']}")
            embedding_dim = config["embed_dim"]
        if embedding_dim is None:
            raise ValueError(
                "embedding_dim is None, wanted the length of the cached embeddings (no backbone)"
            )
        self.embedding_dim: int = embedding_dim
        self.output_dim = output_dim
        self.mlp = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.ReLU(), nn.Linear(embedding_dim, output_dim)
        )
        # A one-entry dict hides the tower from nn.Module, which would register it as a submodule.
        self._loaded: dict[str, tuple[nn.Module, Callable[[Image.Image], Tensor]]] = {}

    def _load(self) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
        """The frozen tower and its preprocessing, loaded once."""
        if self.backbone is None:
            raise ValueError("this ImageEncoder has no backbone: it takes cached embeddings, not images")
        if not self._loaded:
            open_clip = import_open_clip()

            tag = open_clip.get_pretrained_cfg(self.backbone, self.pretrained) if self.pretrained else {}
            # open_clip and the hub's client log their tries; what matters comes as the error below
            logging.disable(logging.ERROR)
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    model, _, preprocess = open_clip.create_model_and_transforms(
                        self.backbone,
                        pretrained=self.pretrained,
                        # open_clip 3 only warns where a tag was trained with the other activation
                        force_quick_gelu=tag.get("quick_gelu", False),
                    )
            # The hub clients below open_clip share no base class for "no network".
            except Exception as error:
                raise RuntimeError(
                    f"cannot load backbone {self.backbone!r} with pretrained={self.pretrained!r}: {error}"
                ) from error
            finally:
                logging.disable(logging.NOTSET)
            self._loaded["clip"] = model.visual.requires_grad_(False).eval(), preprocess
        return self._loaded["clip"]

    def source(self) -> dict[str, Any]:
        """What makes the same embeddings again: the arguments backbone, pretrained and backbone_config."""
        source: dict[str, Any] = {"backbone": self.backbone, "pretrained": self.pretrained}
        if self.backbone_config is not None:
            source["backbone_config"] = self.backbone_config
        return source

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """The backbone's own evaluation transform: PIL image -> (3, H, W) float32; errors as `embed`."""
        return self._load()[1]

    @property
    def preprocess_config(self) -> dict[str, Any]:
        """What ``preprocess`` is made of: open_clip's ``size``, ``mean``, ``std``, …; errors as `embed`."""
        config: dict[str, Any] = dict(vars(self._load()[0])["preprocess_cfg"])
        return config

    def preprocess_image(self, image: Image.Image) -> Tensor:
        """One PIL image to a batch (1, 3, H, W) for `embed`, whose errors it has."""
        return self.preprocess(image).unsqueeze(0)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Frozen backbone embeddings (n, E) of preprocessed images (n, 3, H, W), not normalised.

        Raises:
            ValueError: The encoder has no backbone, or the shape is another.
            RuntimeError: The backbone cannot be loaded; the message names it and ``pretrained``.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}, wanted (n, 3, H, W)")
        tower, _ = self._load()
        embeddings: Tensor | tuple[Tensor, ...] = tower.to(images.device)(images)
        return embeddings[0] if isinstance(embeddings, tuple) else embeddings  # CoCa adds its tokens

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, output_dim) of images (n, 3, H, W) or of cached embeddings (n, E).

        Raises:
            ValueError: Another shape, or images without a backbone.
            RuntimeError: The backbone cannot be loaded.
        """
        if x.ndim != 2:
            x = self.embed(x)
        elif x.shape[1] != self.embedding_dim:
            raise ValueError(f"embeddings have shape {tuple(x.shape)}, wanted (n, {self.embedding_dim})")
        features: Tensor = self.mlp(x)
        return features
