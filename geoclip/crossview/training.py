"""Training one encoder on both views, as a Lightning module: Sample4Geo (Deuser et al., 2023)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from geoclip.crossview.evaluation import rank_views
from geoclip.crossview.mining import similar_places, surprising_places
from geoclip.crossview.model import CrossViewEncoder
from geoclip.crossview.views import CrossViews
from geoclip.named_policy import named_policy
from geoclip.training_ranks import TrainingRanks
from semivario_kernels import VariogramModel, semivariogram_info_nce


class CrossViewTraining(LightningModule):
    """The encoder, the symmetric loss, AdamW under a cosine with a linear warm-up, and the metrics.

    Args:
        backbone: a timm model name.
        pretrained: start from timm's weights.
        label_smoothing: of the loss.
        learning_rate: of AdamW, at the end of the warm-up.
        warm_up_epochs: epochs in which the learning rate rises; a part of one may do.
        similarity_every: epochs after which a batch's neighbours become the places that the encoder of now
            confuses; 0: never.
        similarity_by: "cosine": the most similar places (Sample4Geo); "surprise": those of them that are more
            alike than a semivariogram of the features of now expects, and apart those that are alike because
            they are near.
        policy: preset of `NegativePolicy`; a semivariogram of the features themselves then tells hard
            negatives from false ones.
        strengths: the preset's arguments, for example {"hard": 1, "false": 6}.
        variogram: JSON file of the semivariogram of features, for policies that read it.

    Raises:
        ValueError: numbers out of range, an unknown policy, backbone or similarity, strengths that the policy
            does not take, a policy without the semivariogram that it reads, or a file that is none.
        FileNotFoundError: there is no such variogram file.
        RuntimeError: timm's weights cannot be loaded.
    """

    def __init__(
        self,
        backbone: str = "convnext_base.fb_in22k_ft_in1k_384",
        pretrained: bool = True,
        label_smoothing: float = 0.1,
        learning_rate: float = 1e-3,
        warm_up_epochs: float = 1.0,
        similarity_every: int = 4,
        similarity_by: Literal["cosine", "surprise"] = "cosine",
        policy: str = "none",
        strengths: dict[str, float] | None = None,
        variogram: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["pretrained", "variogram"])
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate: wanted a number above 0, got {learning_rate}")
        if not 0 <= warm_up_epochs < math.inf:
            raise ValueError(f"warm_up_epochs: wanted at least 0, got {warm_up_epochs}")
        if similarity_every < 0:
            raise ValueError(f"similarity_every: wanted at least 0, got {similarity_every}")
        if similarity_by not in ("cosine", "surprise"):
            raise ValueError(f"similarity_by: wanted 'cosine' or 'surprise', got {similarity_by!r}")
        self.policy = named_policy(policy, strengths or {})
        self.variogram = None if variogram is None else VariogramModel.load(variogram)
        # the model itself: its file may move, and another one may take its place
        self.hparams["variogram"] = None if self.variogram is None else repr(self.variogram)
        if self.policy.reads_dissimilarity and self.variogram is None:
            raise ValueError(
                f"variogram: policy {policy!r} reads the semivariogram; wanted its file, got None"
            )
        self.encoder = CrossViewEncoder(backbone, pretrained=pretrained)
        self._held_out: list[list[torch.Tensor]] = [[], []]

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of {"query", "reference" (n, 3, H, W), "query_row", "reference_row" (n,)}.

        Raises:
            ValueError: the policy reads places, and the data set has none.
        """
        x, y = self.encoder(batch["query"]), self.encoder(batch["reference"])
        latlon = self._data.train_views.reference_latlon
        places = None
        if self.policy.reads_positions:
            if latlon is None:
                raise ValueError(f"policy: {self.policy.kind!r} reads places, and the data set has none")
            places = torch.from_numpy(latlon[batch["reference_row"].cpu().numpy()]).to(x.device)
        scale = self.encoder.logit_scale.exp()
        loss = semivariogram_info_nce(
            x,
            y,
            places,
            places,
            scale,
            variogram=self.variogram,
            policy=self.policy,
            dissimilarity="features" if self.policy.reads_dissimilarity else None,
            exclude=self._no_negatives(batch),
            label_smoothing=self.hparams["label_smoothing"],
            symmetric=True,
            group=torch.distributed.group.WORLD if self.trainer.world_size > 1 else None,
        )
        self.log_dict({"loss": loss.detach(), "logit_scale": scale.detach()}, prog_bar=True)
        self._data.batches_done += 1
        return loss

    def _no_negatives(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """(n, K) columns of the loss's gallery that show a row's place, or are its semi-positives, −1 padded.

        The gallery is that of all ranks, in their order. A rank's batch has a place at most once, those of
        several ranks may have it again: K is (1 + semi-positives a query) · ranks. A pair that leaves a row's
        sum leaves its column's too.
        """
        relation, world = self._data.train_views.semi_positives, self.trainer.world_size
        if relation is None and world == 1:
            return None
        own = batch["reference_row"]
        unwanted = own[:, None]
        if relation is not None:
            semi = torch.from_numpy(relation[batch["query_row"].cpu().numpy()]).to(own.device)
            unwanted = torch.cat((unwanted, semi), dim=1)
        gallery: Any = own[None] if world == 1 else self.all_gather(own)
        n = len(own)
        same = unwanted[:, :, None, None] == gallery  # (n, 1 + semi-positives, ranks, n)
        rows = torch.arange(n, device=own.device)
        same[rows, :, self.trainer.global_rank, rows] = False  # the positive
        column = same.long().argmax(dim=3) + n * torch.arange(world, device=own.device)
        return torch.where(same.any(dim=3), column, -1).flatten(1)

    def on_train_epoch_start(self) -> None:
        """Log what the epoch's batches cover."""
        cover = self._data.sampler.coverage(self._data.pair_latlon)
        values = {f"sampler/{name}": float(value) for name, value in cover._asdict().items()}
        self.log_dict({name: value for name, value in values.items() if not math.isnan(value)})

    def on_train_epoch_end(self) -> None:
        """Every `similarity_every` epochs: a place's neighbours become those that look like it by now."""
        every = self.hparams["similarity_every"]
        if every and (self.current_epoch + 1) % every == 0:
            self._replace_neighbours()
        # here, before the next epoch's first batch is fetched and the epoch's checkpoint is written
        self._data.begin_epoch(self.current_epoch + 1)

    def _replace_neighbours(self) -> None:
        data, ranks = self._data, TrainingRanks.current()
        x, y = (self._embed(loader) for loader in data.plain_loaders(data.train_views))
        tables = None
        if ranks.rank == 0:  # one table for all: ranks that round differently would repeat each other's rows
            # a place's queries, where it has several, count together
            places = torch.from_numpy(data.pairs).to(x.device)
            queries = torch.zeros_like(y).index_add_(0, places, x)
            k = data.hparams["neighbours"]
            if self.hparams["similarity_by"] == "surprise":
                tables = surprising_places(queries, y, data.train_views.reference_latlon, k)
            else:
                tables = similar_places(queries, y, k)
        data.sampler.set_neighbours(*ranks.from_first(tables))

    def on_fit_start(self) -> None:
        """Refuse, before the first step, what cannot be drawn from the data.

        Raises:
            ValueError: "surprise" of a data set without coordinates.
        """
        by_surprise = self.hparams["similarity_every"] and self.hparams["similarity_by"] == "surprise"
        if by_surprise and self._data.train_views.reference_latlon is None:
            raise ValueError("similarity_by: 'surprise' reads places, and the data set has none")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what sets the schedule's length beside the data."""
        checkpoint["schedule"] = schedule_of(self.trainer)

    def validation_step(self, images: torch.Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the features of this rank's held-out queries (loader 0) and references (loader 1)."""
        self._held_out[dataloader_idx].append(normalize(self.encoder(images).float(), dim=1))

    def on_validation_epoch_end(self) -> None:
        """Rank the held-out references for every held-out query, and log the metrics."""
        views: CrossViews = self._data.held_out
        files = (views.query_files, views.reference_files)
        shares = [-(-len(of_view) // self.trainer.world_size) for of_view in files]
        x, y = (torch.cat(features) for features in self._held_out)
        self._held_out = [[], []]
        if self.trainer.sanity_checking or [len(x), len(y)] != shares:
            return  # a part of the images only
        x, y = (_whole(features, len(of_view)) for features, of_view in zip((x, y), files, strict=True))
        self.log_dict({f"val/{name}": value for name, value in rank_views(views, x, y).means().items()})

    @torch.no_grad()
    def _embed(self, loader: DataLoader[Any]) -> torch.Tensor:
        """(n, D) unit features of all of a view's images; every rank makes its share of them."""
        training = self.encoder.training
        self.encoder.eval()
        precision = self.trainer.precision_plugin.forward_context
        with precision():
            features = [self.encoder(images.to(self.device)).float() for images in loader]
        self.encoder.train(training)
        return _whole(normalize(torch.cat(features), dim=1), len(loader.dataset))  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises linearly, then falls to 0 on half a cosine.

        Raises:
            ValueError: the trainer has no end, to which the cosine falls.
        """
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                f"max_epochs: wanted their number, or max_steps, to which the learning rate falls, "
                f"got {self.trainer.max_epochs}"
            )
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])
        # an epoch's last step may be of fewer batches
        epoch_steps = math.ceil(len(self._data.sampler) / self.trainer.accumulate_grad_batches)
        warm_up = self.hparams["warm_up_epochs"] * epoch_steps

        def share(step: int) -> float:
            if step < warm_up:
                return float(step / warm_up)
            progress = min(1.0, (step - warm_up) / max(1.0, steps - warm_up))
            return 0.5 * (1 + math.cos(math.pi * progress))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def schedule_of(trainer: Trainer) -> dict[str, Any]:
    """What a trainer says of the number of steps, by the names of its arguments."""
    names = ("max_epochs", "max_steps", "accumulate_grad_batches", "limit_train_batches")
    return {name: getattr(trainer, name) for name in names}


def _whole(share: torch.Tensor, n: int) -> torch.Tensor:
    """(n, D) out of every rank's share: rank r of W has rows r, r + W, …, padded to one length for all."""
    parts = TrainingRanks.current().gather(share)
    return torch.stack(parts, dim=1).flatten(0, 1)[:n]
