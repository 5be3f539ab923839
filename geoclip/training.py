"""Training GeoCLIP from cached embeddings or from images, as a Lightning module.

One step: features of the batch's photos against features of their places, of the queue's and of a gallery's,
all places moved by fresh noise; the semivariogram loss; AdamW under a schedule. Everything random in a step
comes from (seed, step), and all that a step leaves behind is in the checkpoint, so that a resumed run ends
with the weights of an uninterrupted one, bit for bit. In a distributed run every rank does its share of the
batch and encodes its share of the queue and of the gallery; the loss is that of the whole.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from geoclip.checkpoint import read_checkpoint
from geoclip.chunked_encoding import encode_places
from geoclip.commands.options import image_encoder as load_image_encoder
from geoclip.finetune import FineTunedTower, FineTuning
from geoclip.gallery_negatives import GalleryNegatives
from geoclip.image_encoder import ImageEncoder
from geoclip.location_encoder import LocationEncoder
from geoclip.model import GeoCLIP
from geoclip.named_policy import named_policy
from geoclip.optimisation import Schedule, learning_rate_schedule, parameter_groups
from geoclip.queue import PlaceQueue, jitter, same_photo
from geoclip.refit import refit_variogram
from geoclip.training_ranks import TrainingRanks
from semivario_kernels import NegativePolicy, SemivariogramInfoNCE, VariogramModel

LARGEST_LOGIT_SCALE = 100.0  # CLIP's bound (Radford et al., 2021): above it training becomes unstable
# Activations of the official architecture are 43 kB a place: 350 MB are kept for the batch and the queue, all
# further places are encoded twice, a chunk at a time; beside a gallery, of which that is most of the time, a
# chunk only is kept. A GPU wants longer chunks.
_PLACES_KEPT, _PLACES_AT_ONCE, _PLACES_AT_ONCE_ON_GPU = 8192, 512, 2048
_REFIT_PHOTOS = 4096  # 8 million pairs


class GeoCLIPTraining(LightningModule):
    """GeoCLIP with its loss, queue and optimiser.

    Args:
        embedding_dim: length E of the backbone's embeddings; the command line takes it from the data.
        output_dim: length of the features that images and places share.
        sigma: frequency scale of each of the location encoder's capsules; upstream's 1, 16, 256 by default.
        width: width of the capsules' hidden layers.
        encoded_size: Fourier frequencies per capsule.
        head: image head, from embeddings to features: upstream's "mlp" (linear, ReLU, linear), or "linear",
            which starts as the identity: what looks alike is close from the first step on. Fewer steps for
            embeddings that are good features already.
        start_from: "upstream" for the official weights, or a checkpoint of `geoclip fit` whose last weights
            the run begins with, a fine-tuned backbone's where this run trains them too; random weights by
            default.
        policy: preset of `NegativePolicy`, for example "none" (plain InfoNCE) or "explained".
        strengths: the preset's arguments, for example {"hard": 0, "false": 3, "far": 5}.
        variogram: JSON file of the fitted semivariogram (`geoclip variogram` writes it), for the policies
            that read it. Checkpoints carry the model.
        refit_every: optimiser steps from one fit of the semivariogram to the next, from the full queue on; 0
            keeps the one given. Without a `variogram` the policy sets in at the first fit that finds a range,
            tried when the queue is full and then every so many steps.
        refit_from: photos measured: those of the "queue", or a new sample of the "train" data's embeddings.
        queue_size: earlier places that serve as further negatives. The policy sets in when the queue is full.
        gallery: further places that are negatives of every step, drawn once. Encoded in chunks, twice:
            their activations are never held together, and time grows by four forward passes over them.
        gallery_source: where they come from: "train" for places of training photos, whose embeddings the
            policy reads; "upstream" for GeoCLIP's 100,000, or a .csv, .npy or store of places, which have no
            image.
        batch_noise_m: standard deviation, in metres to the east and to the north, of the noise on the batch's
            places; GeoCLIP's 150.
        queue_noise_m: the same for the places of the queue and the gallery; GeoCLIP's 1000.
        finetune: what of the backbone is trained, from images: "none", its last blocks ("last_k"), or
            low-rank adapters ("lora").
        finetune_blocks: k of "last_k".
        lora_rank: rank of the adapters.
        backbone_learning_rate: highest learning rate of what is trained of the backbone.
        learning_rate: of AdamW for everything else, at the top of the schedule.
        weight_decay: of AdamW, on weight matrices only.
        schedule: "one_cycle", or "step": times `decay` every `decay_every` optimiser steps.
        warm_up: fraction of the optimiser steps in which the one-cycle learning rate rises.
        decay: factor of the "step" schedule; GeoCLIP's 0.87.
        decay_every: optimiser steps between its falls; GeoCLIP's is an epoch.
        ema: decay of an exponential moving average of the weights, for example 0.999; 0 keeps none.
            Checkpoints carry both, and evaluation takes the average unless told otherwise.
        seed: of the weights' start and, with the step, of the noise.
        backbone: open_clip model that embeds the images; the command line takes it from the data.
        pretrained: its weights; the command line takes them from the data.
        backbone_config: its configuration, where open_clip does not bring it along; the command line takes it
            from the data.

    Raises:
        ValueError: an unknown policy, head, schedule or fine-tuning, strengths that the policy does not take
            or that are out of range, a bad size or noise, a file that is no variogram model, or weights to
            start from that do not fit.
        FileNotFoundError: there is no such variogram file, or checkpoint to start from.
    """

    def __init__(
        self,
        embedding_dim: int,
        output_dim: int = 512,
        sigma: list[float] | None = None,
        width: int = 1024,
        encoded_size: int = 256,
        head: Literal["mlp", "linear"] = "mlp",
        start_from: str | None = None,
        policy: str = "explained",
        strengths: dict[str, float] | None = None,
        variogram: str | None = None,
        refit_every: int = 0,
        refit_from: Literal["queue", "train"] = "queue",
        queue_size: int = 4096,
        gallery: int = 0,
        gallery_source: str = "train",
        batch_noise_m: float = 150.0,
        queue_noise_m: float = 1000.0,
        finetune: FineTuning = "none",
        finetune_blocks: int = 2,
        lora_rank: int = 8,
        backbone_learning_rate: float = 1e-5,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: Schedule = "one_cycle",
        warm_up: float = 0.1,
        decay: float = 0.87,
        decay_every: int = 1000,
        ema: float = 0.0,
        seed: int = 0,
        backbone: str | None = None,
        pretrained: str | None = None,
        backbone_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # these two are no settings but data: their files may be gone, the checkpoint carries what was in them
        self.save_hyperparameters(ignore=["variogram", "start_from"])
        _check_numbers(self.hparams)
        self.model = start_model(
            embedding_dim,
            output_dim,
            sigma,
            width=width,
            encoded_size=encoded_size,
            head=head,
            seed=seed,
            backbone=backbone,
            pretrained=pretrained,
            backbone_config=backbone_config,
        )
        self.tower: FineTunedTower | None = None
        if finetune != "none":
            if backbone is None:
                raise ValueError(
                    f"finetune: {finetune!r} trains on images (data.images), got cached embeddings"
                )
            self.tower = FineTunedTower(
                self.model.image_encoder, finetune, blocks=finetune_blocks, rank=lora_rank, seed=seed
            )
        if start_from is not None:
            _copy_weights(self, start_from)
        self.averaged: AveragedModel | None = None
        if ema:
            average = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(nn.ParameterList(self._trained()), multi_avg_fn=average)
            self.averaged.requires_grad_(False)
        self.queue = PlaceQueue(queue_size, embedding_dim)
        self.ranks = TrainingRanks()
        self.gallery = self._draw_gallery(0)
        self.warm_up_loss = SemivariogramInfoNCE(policy=NegativePolicy.none())
        given = None if variogram is None else VariogramModel.load(variogram)
        self.loss = SemivariogramInfoNCE(given, named_policy(policy, strengths or {}))
        # refits replace the loss's: a run that goes on must be given what it began with
        self.given_variogram = None if given is None else given.to_dict()
        self._refit_tried = False
        # batches of all ranks since the last optimiser step, for the queue: (latlon, embeddings, rows)
        self._arrived: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        # of the checkpoint that was read
        self.embedding_info: dict[str, Any] = {}
        self.steps_done, self.steps_wanted = 0, 0

    def setup(self, stage: str) -> None:
        """Check what only the whole run can tell, and draw the gallery, before the first step.

        Raises:
            ValueError: a policy without its semivariogram, refits without what they are measured on, no
                number of steps, or a gallery that cannot be drawn.
        """
        policy: NegativePolicy = self.loss.options["policy"]
        refit_every, refit_from = self.hparams["refit_every"], self.hparams["refit_from"]
        if policy.reads_dissimilarity and self.loss.variogram is None and not refit_every:
            raise ValueError(
                f"variogram: policy {policy.kind!r} reads the semivariogram; wanted the JSON file that "
                "`geoclip variogram` writes, or refit_every, got None"
            )
        if refit_every and refit_from == "queue" and self.queue.size < 2:
            raise ValueError(
                f"refit_from: the queue holds {self.queue.size} photos; wanted a longer one, or 'train'"
            )
        if refit_every and refit_from == "train" and self._store is None:
            raise ValueError(
                "refit_from: 'train' reads cached embeddings (data.train), which this run has not"
            )
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"max_steps: wanted the number of training steps, got {self.trainer.max_steps}: "
                "the learning rate's schedule needs it"
            )
        self.ranks = TrainingRanks.current()
        self.warm_up_loss.options["group"] = self.loss.options["group"] = self.ranks.group
        self.gallery = self._draw_gallery(self.hparams["gallery"])
        if self.ranks.world > 1:
            # by default rank 0's buffers replace the others' at every step: the queues are equal anyway, and
            # the shares of the gallery are not
            names = [name for name, _ in self.named_buffers()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
                self, names
            )
        self.embedding_info = getattr(self.trainer.datamodule, "embedding_info", {})  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Log what the sampler's epoch covers, at its first batch."""
        if not self.trainer.is_global_zero:  # the batches are those of all ranks
            return
        step = self.global_step * self.trainer.accumulate_grad_batches + len(self._arrived)
        coverage = getattr(self.trainer.datamodule, "coverage", None)  # type: ignore[attr-defined]
        cover = None if coverage is None else coverage(step)
        if cover is not None:
            values = {f"sampler/{name}": float(value) for name, value in cover._asdict().items()}
            for logger in self.loggers:  # self.log would repeat them at every step
                logger.log_metrics(values, step=self.global_step)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of {"rows" (n,), "latlon" (n, 2), "embeddings" (n, E) or "images" (n, 3, H, W)}.

        All batches of an optimiser step see the queue as the last step left it.
        """
        self._refit_if_due()
        rows, latlon = batch["rows"], batch["latlon"]
        v = self._embed(batch)
        queue_latlon, queue_v, queue_rows = self.queue.entries()
        ranks, gallery = self.ranks, self.gallery
        # stored embeddings are float16 already, and the policy needs no more digits
        all_rows, all_latlon, all_v = (ranks.gather(t) for t in (rows, latlon, v.detach().half()))
        of_queue, of_gallery = ranks.share(len(queue_rows)), ranks.share(len(gallery))
        noise = self._step_generator()
        moved = ranks.own(jitter(torch.cat(all_latlon), self.hparams["batch_noise_m"], noise), all_rows)
        further = torch.cat((queue_latlon, gallery.latlon))
        moved_further = jitter(further, self.hparams["queue_noise_m"], noise)
        queue_length = len(queue_latlon)
        places = torch.cat(
            (moved, moved_further[:queue_length][of_queue], moved_further[queue_length:][of_gallery])
        )
        # as the loss sees the gallery: every rank's batch, share of the queue and share of the gallery
        shares = list(zip(all_rows, ranks.shares(queue_rows), ranks.shares(gallery.rows), strict=True))
        first = sum(len(part) for share in shares[: ranks.rank] for part in share)
        active = self.queue.full and (self.loss.variogram is not None or not self._reads_variogram)
        loss_function = self.loss if active else self.warm_up_loss
        scale = self.model.logit_scale.exp()
        chunk = _PLACES_AT_ONCE_ON_GPU if places.is_cuda else _PLACES_AT_ONCE
        # autocast to bfloat16 refuses to put float16 tensors together
        with torch.autocast(v.device.type, enabled=False):
            batch_v = torch.cat(all_v)
            gallery_v = gallery.behind(all_v[ranks.rank], queue_v[of_queue])
        loss: torch.Tensor = loss_function(
            self.model.image_encoder(v),
            encode_places(
                self.model.location_encoder,
                places.float(),
                kept=chunk if len(gallery) else _PLACES_KEPT,
                chunk=chunk,
            ),
            # distance and dissimilarity are those of the photos: noise is for the location encoder alone
            latlon,
            torch.cat((latlon, queue_latlon[of_queue], gallery.latlon[of_gallery])),
            scale,
            query_embeddings=all_v[ranks.rank],
            gallery_embeddings=gallery_v,
            exclude=same_photo(rows, torch.cat([part for share in shares for part in share]), first),
        )
        self._arrived.append((torch.cat(all_latlon), batch_v, torch.cat(all_rows)))
        # the ranks' mean of this is the mean over all photos
        weight = len(rows) * ranks.world / sum(len(part) for part in all_rows)
        self.log("loss", weight * loss.detach(), prog_bar=True, sync_dist=ranks.world > 1)
        self.log("logit_scale", scale.detach(), prog_bar=True)
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then clamp the logit scale: the parameter, so that its gradient can bring it back.

        Here and not in a later hook, so that no checkpoint lies between the step and what follows from it.
        """
        super().optimizer_step(*args, **kwargs)
        self.finish_step()
        if self.global_step == 0:  # counted after this hook
            self._warn_of_long_queue()

    def _warn_of_long_queue(self) -> None:
        """Say so after the first step if the policy sets in late or never."""
        policy: NegativePolicy = self.loss.options["policy"]
        steps, places = self.trainer.estimated_stepping_batches, len(self.queue)
        plain = math.ceil(self.queue.size / max(places, 1))
        if policy.kind != "none" and 2 * plain > steps:
            rank_zero_warn(
                f"queue_size: {places:,} places a step fill a queue of {self.queue.size:,} in {plain:,} of "
                f"the {steps:,} steps, and until then the loss is plain InfoNCE, without policy "
                f"{policy.kind!r}; wanted a shorter queue (--model.queue_size) or more steps "
                "(--trainer.max_steps)"
            )

    @torch.no_grad()
    def finish_step(self) -> None:
        """What follows an optimiser step: the clamp, the average of the weights, the queue."""
        self.model.logit_scale.clamp_(max=math.log(LARGEST_LOGIT_SCALE))
        if self.averaged is not None:
            self.averaged.update_parameters(nn.ParameterList(self._trained()))
        for arrived in self._arrived:
            self.queue.enqueue(*arrived)
        self._arrived.clear()

    def use_averaged_weights(self) -> None:
        """Put the average in the place of the last weights, for evaluation.

        Raises:
            ValueError: the run kept no average.
        """
        if self.averaged is None:
            raise ValueError("weights: the run kept no average (model.ema 0); wanted 'last'")
        with torch.no_grad():
            for last, average in zip(self._trained(), self.averaged.parameters(), strict=True):
                last.copy_(average)

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on matrices only, and a learning rate of its own for the backbone."""
        options = {"weight_decay": self.hparams["weight_decay"]}
        groups = parameter_groups(
            self.model.parameters(), learning_rate=self.hparams["learning_rate"], **options
        )
        if self.tower is not None:
            rate = self.hparams["backbone_learning_rate"]
            groups += parameter_groups(self.tower.parameters(), learning_rate=rate, **options)
        optimizer = torch.optim.AdamW(groups)
        schedule = learning_rate_schedule(
            optimizer,
            self.hparams["schedule"],
            steps=self.trainer.max_steps,
            **{name: self.hparams[name] for name in ("warm_up", "decay", "decay_every")},
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the schedule's length, and the embeddings' backbone: a photo to be placed needs the same."""
        checkpoint["max_steps"] = self.trainer.max_steps
        checkpoint["accumulate_grad_batches"] = self.trainer.accumulate_grad_batches
        checkpoint["embedding_info"] = self.embedding_info
        checkpoint["given_variogram"] = self.given_variogram
        checkpoint["refit_tried"] = self._refit_tried

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how far the run had come, and take the note on the backbone over."""
        self.embedding_info = checkpoint["embedding_info"]
        self._refit_tried = checkpoint.get("refit_tried", False)  # older checkpoints do not say
        self.steps_done, self.steps_wanted = checkpoint["global_step"], checkpoint["max_steps"]
        # Lightning converts the module after it has read the weights: float64 ones would be rounded on the
        # way
        self.to(checkpoint["state_dict"]["model.logit_scale"].dtype)

    def _trained(self) -> list[nn.Parameter]:
        parts = [self.model] if self.tower is None else [self.model, self.tower]
        return [parameter for part in parts for parameter in part.parameters()]

    def _embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if "images" not in batch:
            return batch["embeddings"]
        if self.tower is not None:
            tuned: torch.Tensor = self.tower(batch["images"])
            return tuned.float()
        return self.model.image_encoder.embed(batch["images"]).float()

    @property
    def _store(self) -> Any:
        return getattr(self.trainer.datamodule, "store", None)  # type: ignore[attr-defined]

    @property
    def _reads_variogram(self) -> bool:
        policy: NegativePolicy = self.loss.options["policy"]
        return policy.reads_dissimilarity

    def _draw_gallery(self, size: int) -> GalleryNegatives:
        settings = self.hparams
        return GalleryNegatives.draw(
            settings["gallery_source"],
            size,
            store=self._store if size else None,
            dim=settings["embedding_dim"],
            seed=settings["seed"],
            ranks=self.ranks,
        )

    def _refit_if_due(self) -> None:
        """Fit the semivariogram again, once per due optimiser step, on rank 0 for all."""
        every = self.hparams["refit_every"]
        if not every or self._arrived or not self.queue.full:
            return
        # the first try comes as soon as the queue is full; after one that found nothing the next due step is
        # waited for: a range that is looked for at every step is found in pure noise, sooner or later
        first = self.loss.variogram is None and not self._refit_tried
        if self.global_step % every and not first:
            return
        self._refit_tried = True
        model = None
        if self.ranks.rank == 0:
            if self.hparams["refit_from"] == "queue":
                latlon, v, _ = self.queue.entries()
            else:
                store = self._store
                seed = (self.hparams["seed"], 2, self.global_step)
                chosen = np.sort(np.random.default_rng(seed).permutation(len(store))[:_REFIT_PHOTOS])
                latlon, v = torch.from_numpy(store.latlon[chosen]), torch.from_numpy(store.read(chosen))
            model = refit_variogram(latlon, v, self.loss.variogram)
        self.loss.variogram = self.ranks.from_first(model)

    def _step_generator(self) -> torch.Generator:
        """Of this batch of this step."""
        numbers = (self.hparams["seed"], self.global_step, len(self._arrived))
        state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))


def _check_numbers(settings: Any) -> None:
    for name in ("batch_noise_m", "queue_noise_m", "weight_decay"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name}: wanted a number of at least 0, got {settings[name]}")
    for name in ("learning_rate", "backbone_learning_rate"):
        if not 0 < settings[name] < math.inf:
            raise ValueError(f"{name}: wanted a number above 0, got {settings[name]}")
    for name in ("refit_every", "gallery"):
        if settings[name] < 0:
            raise ValueError(f"{name}: wanted at least 0, got {settings[name]}")
    if not 0 < settings["warm_up"] < 1:
        raise ValueError(f"warm_up: wanted a fraction between 0 and 1, got {settings['warm_up']}")
    if not 0 < settings["decay"] <= 1 or settings["decay_every"] < 1:
        raise ValueError(
            "decay, decay_every: wanted a factor above 0 and up to 1, and at least 1 step, "
            f"got {settings['decay']} and {settings['decay_every']}"
        )
    if not 0 <= settings["ema"] < 1:
        raise ValueError(f"ema: wanted a decay of at least 0 and below 1, got {settings['ema']}")
    for name, choices in (
        ("schedule", ("one_cycle", "step")),
        ("refit_from", ("queue", "train")),
        ("finetune", ("none", "last_k", "lora")),
    ):
        if settings[name] not in choices:
            raise ValueError(f"{name}: wanted one of {', '.join(choices)}, got {settings[name]!r}")


def start_model(
    embedding_dim: int,
    output_dim: int,
    sigma: list[float] | None,
    *,
    width: int,
    encoded_size: int,
    head: str,
    seed: int,
    backbone: str | None = None,
    pretrained: str | None = None,
    backbone_config: dict[str, Any] | None = None,
) -> GeoCLIP:
    """The model that a run begins with; arguments and errors of `GeoCLIPTraining`."""
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
    if backbone is not None:
        with_tower = load_image_encoder(backbone, pretrained, backbone_config)
        if with_tower.embedding_dim != embedding_dim:
            raise ValueError(
                f"embedding_dim: {backbone} makes {with_tower.embedding_dim} numbers, got {embedding_dim}"
            )
        with_tower.mlp, with_tower.output_dim = image_encoder.mlp, output_dim
        image_encoder = with_tower
    # training needs no gallery: whoever predicts brings one
    return GeoCLIP(
        from_pretrained=False,
        queue_size=0,
        image_encoder=image_encoder,
        location_encoder=location_encoder,
        gallery=torch.zeros(1, 2),
    )


def _copy_weights(module: GeoCLIPTraining, source: str) -> None:
    """Begin with the weights of another model of the same architecture."""
    model = module.model
    if source == "upstream":
        weights = GeoCLIP.from_upstream(ImageEncoder(None, embedding_dim=768)).state_dict()
    else:
        saved = read_checkpoint(source)
        weights = _under("model.", saved["state_dict"])
        if tuned := _under("tower.", saved["state_dict"]):
            _copy_tower(module, tuned, saved["hyper_parameters"], source)
    for name, own in model.named_parameters():
        shape = None if name not in weights else tuple(weights[name].shape)
        if shape != tuple(own.shape):
            raise ValueError(
                f"start_from: {source} is of another architecture: {name} has shape {shape} there, "
                f"{tuple(own.shape)} here"
            )
    own_buffers = {name for name, _ in model.named_buffers() if name.startswith("location_encoder.")}
    wanted = {name for name, _ in model.named_parameters()} | own_buffers
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)


def _copy_tower(
    module: GeoCLIPTraining, tuned: dict[str, torch.Tensor], settings: dict[str, Any], source: str
) -> None:
    """Begin with a backbone that was trained: the head that comes with it knows no other embeddings.

    All that was trained there must be trained here, on the same frozen rest; more may be.
    """
    own = {} if module.tower is None else module.tower.state_dict()
    there, here = (
        {
            name: of.get(name)
            for name in ("backbone", "pretrained", "finetune", "finetune_blocks", "lora_rank")
        }
        for of in (settings, module.hparams)
    )
    same_rest = all(
        settings.get(name) == module.hparams[name] for name in ("backbone", "pretrained", "backbone_config")
    )
    if not same_rest or any(name not in own or own[name].shape != tuned[name].shape for name in tuned):
        raise ValueError(
            f"start_from: {source} has a fine-tuned backbone; wanted a run from images that fine-tunes the "
            f"same weights, {there}, got {here}"
        )
    assert module.tower is not None
    module.tower.load_state_dict(tuned, strict=False)


def _under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
