"""GeoCLIP's image encoder: a frozen open_clip visual tower and a small trainable head."""

import logging
import os
from collections.abc import Callable

import open_clip
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photo the way a person sees it: EXIF orientation applied, RGB.

    Raises:
        ValueError: The file is no image, or a broken one; the message names it.
        OSError: The file cannot be opened, for instance FileNotFoundError.
    """
    with open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except UnidentifiedImageError:  # its own message shows the file object
            raise ValueError(f"{os.fspath(path)}: not a readable image: no format that is known") from None
        # What Pillow raises depends on the format and on the damage: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            raise ValueError(f"{os.fspath(path)}: not a readable image: {error}") from error


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

    Raises:
        ValueError: Unknown backbone, or ``embedding_dim`` missing or in conflict with the backbone.
    """

    def __init__(
        self,
        backbone: str | None = "ViT-L-14",
        pretrained: str | os.PathLike[str] | None = "openai",
        *,
        embedding_dim: int | None = None,
        output_dim: int = 512,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pretrained = None if pretrained is None else os.fspath(pretrained)
        if backbone is not None:
            config = open_clip.get_model_config(backbone)
            if config is None:
                raise ValueError(f"backbone {backbone!r} is unknown, wanted one of {open_clip.list_models()}")
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

    @property
    def preprocess(self) -> Callable[[Image.Image], Tensor]:
        """The backbone's own evaluation transform: PIL image -> (3, H, W)."""
        return self._load()[1]

    def preprocess_image(self, image: Image.Image) -> Tensor:
        """One PIL image to a batch (1, 3, H, W)."""
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
        """
        if x.ndim != 2:
            x = self.embed(x)
        elif x.shape[1] != self.embedding_dim:
            raise ValueError(f"embeddings have shape {tuple(x.shape)}, wanted (n, {self.embedding_dim})")
        features: Tensor = self.mlp(x)
        return features
