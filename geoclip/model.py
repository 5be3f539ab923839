"""GeoCLIP: image features against location features, with upstream's public API and state-dict names."""

import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from geoclip import release
from geoclip.coordinates import check_latlon
from geoclip.image_encoder import ImageEncoder, import_open_clip, read_image
from geoclip.location_encoder import LocationEncoder
from geoclip.upstream import fetch_upstream, read_gallery

GALLERY_CHUNK = 8192  # locations encoded at once: bounds the memory of a large gallery


class GeoCLIP(nn.Module):
    """Scores images against places (Vivanco Cepeda et al., NeurIPS 2023).

    Parts given by keyword are used as they are; ``from_pretrained`` fills the others with the official
    weights, and sets the logit scale.

    Attributes:
        image_encoder: Images (n, 3, H, W) or cached embeddings (n, E) to features.
        location_encoder: (latitude, longitude) in degrees (m, 2) to features.
        logit_scale: Scalar parameter in log space.
        gps_gallery: (latitude, longitude) in degrees, (g, 2) float32; a non-persistent buffer.
        gps_queue: (latitude, longitude) in degrees, (2, queue_size). Slots never filled are NaN; upstream
            starts with random numbers instead, which a state dict of its own therefore brings along.
        gps_queue_ptr: The slot written next, (1,) int64.

    Args:
        from_pretrained: Load the official weights (fetched by pip on first use).
        queue_size: Length of the GPS queue.
        image_encoder: By default CLIP ViT-L/14 of OpenAI, loaded when the first image comes.
        location_encoder: By default upstream's architecture.
        gallery: (latitude, longitude) in degrees, (g, 2); by default upstream's 100,000 coordinates.

    Raises:
        ValueError: ``gallery`` or ``queue_size`` is malformed.
        ModuleNotFoundError: open_clip is missing and no ``image_encoder`` given; names the extra with it.
        UpstreamUnavailable: Official weights or gallery are asked for and cannot be fetched.
    """

    gps_gallery: Tensor
    gps_queue: Tensor
    gps_queue_ptr: Tensor

    def __init__(
        self,
        from_pretrained: bool = True,
        queue_size: int = 4096,
        *,
        image_encoder: ImageEncoder | None = None,
        location_encoder: nn.Module | None = None,
        gallery: Tensor | None = None,
    ) -> None:
        super().__init__()
        if queue_size < 0:
            raise ValueError(f"queue_size is {queue_size}, wanted 0 or more")
        gallery = read_gallery() if gallery is None else gallery
        if gallery.ndim != 2 or gallery.shape[1] != 2 or not len(gallery):
            raise ValueError(
                f"gallery has shape {tuple(gallery.shape)}, wanted (g, 2) degrees lat, lon, g >= 1"
            )
        if not (gallery[:, 0].abs() <= 90).all() or not gallery.isfinite().all():
            raise ValueError("gallery has latitudes outside ±90° or coordinates that are not finite")
        if image_encoder is None:
            image_encoder = ImageEncoder()
            if from_pretrained:
                _load_official_head(image_encoder)
        self.image_encoder = image_encoder
        self.location_encoder = location_encoder or LocationEncoder(from_pretrained=from_pretrained)
        scale = _official(fetch_upstream().logit_scale_weights) if from_pretrained else math.log(1 / 0.07)
        self.logit_scale = nn.Parameter(torch.as_tensor(scale))
        self.queue_size = queue_size
        self.register_buffer("gps_gallery", gallery.float(), persistent=False)
        self.register_buffer("gps_queue", torch.full((2, queue_size), math.nan))
        self.register_buffer("gps_queue_ptr", torch.zeros(1, dtype=torch.long))
        self._gallery_cache: tuple[list[Tensor], Tensor] | None = None

    @classmethod
    def from_upstream(cls, image_encoder: ImageEncoder | None = None) -> "GeoCLIP":
        """Official location encoder, image head, logit scale and gallery.

        Args:
            image_encoder: Gets the official head; by default CLIP ViT-L/14 of OpenAI, loaded when the first
                image comes. ``ImageEncoder(None, embedding_dim=768)`` scores cached embeddings alone.

        Returns:
            The model, on the CPU.

        Raises:
            ValueError: The official head does not fit ``image_encoder``.
            UpstreamUnavailable: The official files are not in the cache and cannot be fetched.
        """
        image_encoder = image_encoder or ImageEncoder()
        _load_official_head(image_encoder)
        return cls(image_encoder=image_encoder)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **download_options: Any
    ) -> "GeoCLIP":
        """Read a release, for inference.

        The backbone is open_clip's; where the release names one that open_clip does not have, the model takes
        cached embeddings alone.

        Args:
            pretrained_model_name_or_path: a folder, or the ID of a repository on the Hugging Face Hub.
            **download_options: revision, token, cache_dir and local_files_only, for the Hub's client.

        Returns:
            The model in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: there is no such folder, and the Hub gives none.
            ValueError: it is no GeoCLIP release, or a damaged one.
        """
        path, config, tensors = release.read_release(
            pretrained_model_name_or_path, release.MODEL, **download_options
        )
        gallery = read_gallery(release.gallery_path(path, config))
        gallery = torch.from_numpy(check_latlon(gallery.numpy(), str(path / config["gallery_file"])))
        try:
            location = {
                name.removeprefix("location_encoder."): tensor
                for name, tensor in tensors.items()
                if name.startswith("location_encoder.")
            }
            model = cls(
                from_pretrained=False,
                image_encoder=_image_encoder(tensors, config),
                location_encoder=LocationEncoder.from_tensors(config["sigma"], location),
                gallery=gallery,
            )
            queue = {
                name: tensor for name, tensor in model.state_dict().items() if name.startswith("gps_queue")
            }
            model.load_state_dict({**tensors, **queue})
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path / 'model.safetensors'} holds no GeoCLIP: {reason}") from error
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a release that `from_pretrained` reads.

        Upstream's reads it too where architecture and backbone are its own. The queue stays behind, as in
        upstream's releases.

        Args:
            folder: made if missing; an earlier release in it is replaced.

        Raises:
            OSError: the folder cannot be written.
        """
        tensors = {
            name: value for name, value in self.state_dict().items() if not name.startswith("gps_queue")
        }
        config: dict[str, Any] = {"model_type": release.MODEL, "sigma": self.location_encoder.sigma}
        encoder = self.image_encoder
        if encoder.backbone is not None:
            config["open_clip"] = {"model": encoder.backbone, "pretrained": encoder.pretrained}
            if encoder.backbone_config is not None:
                config["open_clip"]["config"] = encoder.backbone_config
            if config["open_clip"] == release.OPEN_CLIP_L14:
                config["backbone"] = release.HUB_L14
        release.write_release(folder, config, tensors, self.gps_gallery)

    def forward(self, image: Tensor, location: Tensor) -> Tensor:
        """Logits per image: the logit scale times the cosine of the features.

        Args:
            image: Preprocessed images (n, 3, H, W) or cached backbone embeddings (n, E).
            location: (latitude, longitude) in degrees, (m, 2).

        Returns:
            Logits, (n, m).

        Raises:
            ValueError: another shape, or images where the image encoder has no backbone.
            RuntimeError: the backbone cannot be loaded.
        """
        image_features = normalize(self.image_encoder(image), dim=1)
        location_features = normalize(self.location_encoder(location), dim=1)
        logits: Tensor = self.logit_scale.exp() * (image_features @ location_features.T)
        return logits

    @torch.no_grad()
    def predict(self, image_path: str | os.PathLike[str], top_k: int) -> tuple[Tensor, Tensor]:
        """The gallery places most probable for a photo.

        Args:
            image_path: The photo; its EXIF orientation is applied.
            top_k: Number of places, at most the size of the gallery.

        Returns:
            (latitude, longitude) in degrees (top_k, 2) and their probabilities (top_k,), both on the CPU,
            most probable first.

        Raises:
            ValueError: ``top_k`` is out of range, the file is no readable image, or the image encoder has
                no backbone.
            OSError: The file cannot be opened.
            RuntimeError: The backbone cannot be loaded.
        """
        if not 1 <= top_k <= len(self.gps_gallery):
            raise ValueError(f"top_k is {top_k}, wanted 1 to {len(self.gps_gallery)} (the gallery's size)")
        image = self.image_encoder.preprocess_image(read_image(image_path)).to(self.logit_scale.device)
        image_features = normalize(self.image_encoder(image), dim=1)
        logits = self.logit_scale.exp() * (image_features @ self._gallery_features().T)
        probability, index = logits[0].softmax(dim=0).topk(top_k)
        return self.gps_gallery[index].cpu(), probability.cpu()

    def _gallery_features(self) -> Tensor:
        """Normalised features of the gallery, kept until a weight or the gallery changes.

        The copy compared against costs the weights' size and milliseconds; version counters would miss
        writes through ``.data``.
        """
        state = [*self.location_encoder.state_dict().values(), self.gps_gallery]
        if self._gallery_cache is None or not _equal(self._gallery_cache[0], state):
            # An autocast around one call must not leave coarse features to the next.
            with torch.autocast(self.gps_gallery.device.type, enabled=False):
                chunks = [self.location_encoder(c) for c in torch.split(self.gps_gallery, GALLERY_CHUNK)]
            features = normalize(torch.cat(chunks), dim=1)
            self._gallery_cache = [tensor.clone() for tensor in state], features
        return self._gallery_cache[1]

    @property
    def gps_queue_filled(self) -> Tensor:
        """Number of queue slots that hold a position, a scalar int64 tensor."""
        return self.gps_queue[0].isfinite().sum()

    def get_gps_queue(self) -> Tensor:
        """Positions in the queue, (filled, 2) degrees: slots never filled are left out."""
        return self.gps_queue[:, self.gps_queue[0].isfinite()].T

    @torch.no_grad()
    def dequeue_and_enqueue(self, gps: Tensor) -> None:
        """Write positions over the oldest slots of the queue; of more than fit, the last ones stay.

        Args:
            gps: (latitude, longitude) in degrees, (n, 2).

        Raises:
            ValueError: ``gps`` is not of shape (n, 2).
        """
        if gps.ndim != 2 or gps.shape[1] != 2:
            raise ValueError(f"gps has shape {tuple(gps.shape)}, wanted (n, 2) degrees lat, lon")
        if len(gps) >= self.queue_size:
            self.gps_queue.copy_(gps[len(gps) - self.queue_size :].T)
            self.gps_queue_ptr.zero_()
            return
        slots = (self.gps_queue_ptr + torch.arange(len(gps), device=self.gps_queue.device)) % self.queue_size
        self.gps_queue[:, slots] = gps.T.to(self.gps_queue)
        self.gps_queue_ptr.add_(len(gps)).remainder_(self.queue_size)


def _load_official_head(image_encoder: ImageEncoder) -> None:
    if (image_encoder.embedding_dim, image_encoder.output_dim) != (768, 512):
        raise ValueError(
            f"image_encoder maps {image_encoder.embedding_dim} to {image_encoder.output_dim} dimensions, "
            "the official head 768 to 512"
        )
    image_encoder.mlp.load_state_dict(_official(fetch_upstream().image_head_weights))


def _image_encoder(tensors: dict[str, Tensor], config: dict[str, Any]) -> ImageEncoder:
    """The image encoder of a release: sizes from the head's tensors, which are not loaded here."""
    named = config.get("open_clip")
    if named is None and config.get("backbone", {}).get("repo_id") == release.HUB_L14["repo_id"]:
        named = release.OPEN_CLIP_L14
    weights = [
        tensors[name]
        for name in ("image_encoder.mlp.0.weight", "image_encoder.mlp.2.weight")
        if name in tensors
    ]
    embedding_dim, output_dim = weights[0].shape[1], len(weights[-1])
    if named is not None and _has_backbone(named):
        encoder = ImageEncoder(
            named["model"],
            named["pretrained"],
            embedding_dim=embedding_dim,
            output_dim=output_dim,
            backbone_config=named.get("config"),
        )
    else:
        encoder = ImageEncoder(None, embedding_dim=embedding_dim, output_dim=output_dim)
    if len(weights) == 1:
        encoder.mlp = nn.Sequential(nn.Linear(embedding_dim, output_dim))
    return encoder


def _has_backbone(named: dict[str, Any]) -> bool:
    return named.get("config") is not None or import_open_clip().get_model_config(named["model"]) is not None


def _official(path: os.PathLike[str]) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.device == y.device and x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )
