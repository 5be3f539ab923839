"""Training GeoCLIP's image head and location encoder from cached embeddings, as a Lightning module.

One step: features of the batch's photos against features of their places and of the queue's places, all
places moved by fresh noise; the semivariogram loss; AdamW under a one-cycle schedule. Everything random in a
step comes from (seed, step), and all that a step leaves behind is in the checkpoint, so that a resumed run
ends with the weights of an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from geoclip.image_encoder import ImageEncoder
from geoclip.location_encoder import LocationEncoder
from geoclip.model import GeoCLIP
from geoclip.queue import PlaceQueue, jitter, same_photo
from semivario_kernels import NegativePolicy, SemivariogramInfoNCE, VariogramModel
from semivario_kernels.atomic import write_atomically

LARGEST_LOGIT_SCALE = 100.0  # CLIP's bound (Radford et al., 2021): above it training becomes unstable


class GeoCLIPTraining(LightningModule):
    """GeoCLIP with its loss, queue and optimiser.

    Args:
        embedding_dim: length E of the cached embeddings; the command line takes it from the data.
        output_dim: length of the features that images and places share.
        sigma: frequency scale of each of the location encoder's capsules; upstream's 1, 16, 256 by default.
        width: width of the capsules' hidden layers.
        encoded_size: Fourier frequencies per capsule.
        head: image head, from embeddings to features: upstream's "mlp" (linear, ReLU, linear), or "linear",
            which starts as the identity: what looks alike is close from the first step on. Fewer steps for
            embeddings that are good features already.
        policy: preset of `NegativePolicy`, for example "none" (plain InfoNCE) or "explained".
        strengths: the preset's arguments, for example {"hard": 0, "false": 6}.
        variogram: JSON file of the fitted semivariogram (`geoclip variogram` writes it), for the policies
            that read it. Checkpoints carry the model.
        queue_size: earlier places that serve as further negatives. The policy sets in when the queue is full.
        batch_noise_m: standard deviation, in metres to the east and to the north, of the noise on the batch's
            places; GeoCLIP's 150.
        queue_noise_m: the same for the queue's places; GeoCLIP's 1000.
        learning_rate: of AdamW, at the top of the one-cycle schedule.
        weight_decay: of AdamW, on weight matrices only.
        warm_up: fraction of the steps in which the learning rate rises.
        seed: of the weights' start and, with the step, of the noise.

    Raises:
        ValueError: an unknown policy or head, strengths that the policy does not take or that are out of
            range, a bad size or noise, or a file that is no variogram model.
        FileNotFoundError: there is no such variogram file.
    """

    def __init__(
        self,
        embedding_dim: int,
        output_dim: int = 512,
        sigma: list[float] | None = None,
        width: int = 1024,
        encoded_size: int = 256,
        head: Literal["mlp", "linear"] = "mlp",
        policy: str = "explained",
        strengths: dict[str, float] | None = None,
        variogram: str | None = None,
        queue_size: int = 4096,
        batch_noise_m: float = 150.0,
        queue_noise_m: float = 1000.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warm_up: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # the variogram is no setting but data: its file may be gone, the loss's state carries the model
        self.save_hyperparameters(ignore="variogram")
        for name in ("batch_noise_m", "queue_noise_m", "weight_decay"):
            if not 0 <= self.hparams[name] < math.inf:
                raise ValueError(f"{name}: wanted a number of at least 0, got {self.hparams[name]}")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate: wanted a number above 0, got {learning_rate}")
        if not 0 < warm_up < 1:
            raise ValueError(f"warm_up: wanted a fraction between 0 and 1, got {warm_up}")
        self.model = _start_model(
            embedding_dim, output_dim, sigma, width=width, encoded_size=encoded_size, head=head, seed=seed
        )
        self.queue = PlaceQueue(queue_size, embedding_dim)
        self.warm_up_loss = SemivariogramInfoNCE(policy=NegativePolicy.none())
        self.loss = SemivariogramInfoNCE(
            None if variogram is None else VariogramModel.load(variogram),
            _policy(policy, strengths or {}),
        )
        # of the checkpoint that was read
        self.embedding_info: dict[str, Any] = {}
        self.steps_done, self.steps_wanted = 0, 0

    def setup(self, stage: str) -> None:
        """Check what only the whole run can tell, before the first step."""
        policy: NegativePolicy = self.loss.options["policy"]
        if policy.reads_dissimilarity and self.loss.variogram is None:
            raise ValueError(
                f"variogram: policy {policy.kind!r} reads the semivariogram; wanted the JSON file that "
                "`geoclip variogram` writes, got None"
            )
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"max_steps: wanted the number of training steps, got {self.trainer.max_steps}: "
                "the learning rate's schedule needs it"
            )
        self.embedding_info = getattr(self.trainer.datamodule, "embedding_info", {})  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of {"rows" (n,), "latlon" (n, 2), "embeddings" (n, E)}; put them into the queue."""
        rows, latlon, v = batch["rows"], batch["latlon"], batch["embeddings"]
        queue_latlon, queue_v, queue_rows = self.queue.entries()
        noise = self._step_generator()
        places = torch.cat(
            (
                jitter(latlon, self.hparams["batch_noise_m"], noise),
                jitter(queue_latlon, self.hparams["queue_noise_m"], noise),
            )
        )
        loss_function = self.loss if self.queue.full else self.warm_up_loss
        scale = self.model.logit_scale.exp()
        loss: torch.Tensor = loss_function(
            self.model.image_encoder(v),
            self.model.location_encoder(places.float()),
            # distance and dissimilarity are those of the photos: noise is for the location encoder alone
            latlon,
            torch.cat((latlon, queue_latlon)),
            scale,
            query_embeddings=v,
            gallery_embeddings=torch.cat((v, queue_v.to(v))),
            exclude=same_photo(rows, torch.cat((rows, queue_rows))),
        )
        self.queue.enqueue(latlon, v, rows)
        self.log_dict({"loss": loss.detach(), "logit_scale": scale.detach()}, prog_bar=True)
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then clamp the logit scale: the parameter, so that its gradient can bring it back.

        Here and not in a later hook, so that no checkpoint holds an unclamped one.
        """
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(LARGEST_LOGIT_SCALE))

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on matrices only, under a one-cycle schedule over the run's steps."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2]},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=self.hparams["learning_rate"], weight_decay=self.hparams["weight_decay"]
        )
        # the rise takes a step at least: OneCycleLR divides by its length
        steps = max(self.trainer.max_steps, 3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.hparams["learning_rate"],
            total_steps=steps,
            pct_start=max(self.hparams["warm_up"], 2 / steps),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the schedule's length, and the embeddings' backbone: a photo to be placed needs the same."""
        checkpoint["max_steps"] = self.trainer.max_steps
        checkpoint["embedding_info"] = self.embedding_info

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how far the run had come, and take the note on the backbone over."""
        self.embedding_info = checkpoint["embedding_info"]
        self.steps_done, self.steps_wanted = checkpoint["global_step"], checkpoint["max_steps"]

    def _step_generator(self) -> torch.Generator:
        state = np.random.SeedSequence((self.hparams["seed"], self.global_step)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all.

    Lightning's own goes through the temporary folder; where that is another file system, the last step of its
    "atomic" write is a copy that a kill can interrupt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint beside its place, then rename it."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomically(path, lambda file: torch.save(checkpoint, file))


def _policy(preset: str, strengths: dict[Any, float]) -> NegativePolicy:
    presets = _presets()
    if preset not in presets:
        raise ValueError(f"policy: wanted one of {', '.join(presets)}, got {preset!r}")
    # YAML reads a bare `false` as a boolean
    named = {"false" if name is False else name: value for name, value in strengths.items()}
    try:
        policy: NegativePolicy = getattr(NegativePolicy, preset)(**named)
    except TypeError as error:  # an argument too many or too few
        raise ValueError(f"strengths: {error}") from error
    return policy


def _presets() -> Iterable[str]:
    return [name for name, value in vars(NegativePolicy).items() if isinstance(value, classmethod)]


def _start_model(
    embedding_dim: int,
    output_dim: int,
    sigma: list[float] | None,
    *,
    width: int,
    encoded_size: int,
    head: str,
    seed: int,
) -> GeoCLIP:
    if head not in ("mlp", "linear"):
        raise ValueError(f"head: wanted 'mlp' or 'linear', got {head!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image_encoder = ImageEncoder(None, embedding_dim=embedding_dim, output_dim=output_dim)
        location_encoder = LocationEncoder(
            sigma, from_pretrained=False, width=width, encoded_size=encoded_size, output_dim=output_dim
        )
    if head == "linear":
        linear = nn.Linear(embedding_dim, output_dim)
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
        image_encoder.mlp = nn.Sequential(linear)
    # training needs no gallery: whoever predicts brings one
    return GeoCLIP(
        from_pretrained=False,
        queue_size=0,
        image_encoder=image_encoder,
        location_encoder=location_encoder,
        gallery=torch.zeros(1, 2),
    )
