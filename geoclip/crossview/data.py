"""Batches of a cross-view data set for Lightning."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler

from geoclip.crossview.cvact import read_cvact
from geoclip.crossview.cvusa import read_cvusa
from geoclip.crossview.images import ImagePairs, Images
from geoclip.crossview.transforms import Numbers, Size, TurnTogether, plain_transform, training_transform
from geoclip.crossview.university1652 import read_university1652
from geoclip.crossview.views import CrossViews
from geoclip.crossview.vigor import read_vigor
from geoclip.sampling import EpochBatchSampler, geographic_neighbours
from geoclip.training_ranks import TrainingRanks

DatasetName = Literal["cvusa", "cvact", "vigor-same", "vigor-cross", "university1652"]


def held_out_split(dataset: str) -> str:
    """The split that a training is evaluated on."""
    return "val" if dataset in ("cvusa", "cvact") else "test"


def read_views(dataset: str, root: str, split: str, *, query: str = "drone") -> CrossViews:
    """Read a split of a data set by its name; errors as its reader's, ValueError for another name.

    Args:
        dataset: "cvusa", "cvact", "vigor-same", "vigor-cross" or "university1652".
        root: its folder.
        split: as its reader takes them.
        query: "drone" or "satellite", of University-1652.
    """
    if dataset == "cvusa":
        return read_cvusa(root, split)
    if dataset == "cvact":
        return read_cvact(root, split)
    if dataset in ("vigor-same", "vigor-cross"):
        return read_vigor(root, split, area=dataset.removeprefix("vigor-"))
    if dataset == "university1652":
        return read_university1652(root, split, query=query)
    raise ValueError(
        f"dataset: wanted cvusa, cvact, vigor-same, vigor-cross or university1652, got {dataset!r}"
    )


class CrossViewData(LightningDataModule):
    """Training pairs in Sample4Geo's batches; held-out queries and references.

    Args:
        dataset: "cvusa", "cvact", "vigor-same", "vigor-cross" or "university1652" (drone to satellite).
        root: its folder.
        batch_size: pairs per step and process.
        query_size: height and width that queries are resized to.
        reference_size: height and width of the satellite images.
        sampling: "random", or "neighbours": places near on the ground come in one batch.
        neighbours: nearest places of which a batch draws: all of the first `nearest`, some behind.
        nearest: places that each seed of a batch brings.
        further: random ones of the ranks behind, as many as this.
        flip: probability of mirroring both views.
        rotate: probability of a turn of both views by a multiple of 90°.
        query_grid_ratio: of grid dropout of queries; published are 0.5 for panoramas, 0.4 for drone images.
        workers: processes that read images.
        seed: of batches and disturbances.

    Raises:
        FileNotFoundError: a file of the data set is missing.
        ValueError: an unknown name, a damaged data set, "neighbours" of a data set without coordinates, or
            sizes that do not fit.
    """

    def __init__(
        self,
        dataset: DatasetName,
        root: str,
        batch_size: int = 128,
        query_size: tuple[int, int] = (140, 768),
        reference_size: tuple[int, int] = (384, 384),
        sampling: Literal["random", "neighbours"] = "neighbours",
        neighbours: int = 128,
        nearest: int = 32,
        further: int = 32,
        flip: float = 0.5,
        rotate: float = 0.75,
        query_grid_ratio: float = 0.5,
        workers: int = 4,
        seed: int = 1,
    ) -> None:
        super().__init__()
        # what a run that goes on must agree in: not where the data lie or who reads them
        self.save_hyperparameters(ignore=["root", "workers"], logger=False)
        if sampling not in ("random", "neighbours"):
            raise ValueError(f"sampling: wanted 'random' or 'neighbours', got {sampling!r}")
        self.workers = workers
        self.train_views = read_views(dataset, root, "train")
        self.held_out = read_views(dataset, root, held_out_split(dataset))
        self.hparams["images_checksum"] = self.held_out.checksum(self.train_views.checksum())
        self.pairs = self.train_views.pairs()
        self._neighbours = None
        if sampling == "neighbours":
            if self.train_views.reference_latlon is None:
                raise ValueError(f"sampling: {dataset} in {root} has no coordinates; wanted 'random'")
            self._neighbours = geographic_neighbours(self.train_views.reference_latlon, neighbours)
        self.sampler = self._make_sampler()
        self.batches_done = 0  # of the sampler's epoch; not those read ahead
        self.turn = TurnTogether(flip, rotate, panorama=dataset != "university1652")

    def setup(self, stage: str) -> None:
        """Give this process its share of the batches: only now there is a process group."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.sampler = self._make_sampler()

    def _make_sampler(self) -> EpochBatchSampler:
        return EpochBatchSampler(
            len(self.pairs),
            self.hparams["batch_size"],
            neighbours=self._neighbours,
            places=self.pairs,
            nearest=self.hparams["nearest"],
            further=self.hparams["further"],
            seed=self.hparams["seed"],
        )

    @property
    def pair_latlon(self) -> NDArray[np.float64] | None:
        """(N, 2) degrees of the training pairs, where the data set has them."""
        latlon = self.train_views.reference_latlon
        return None if latlon is None else latlon[self.pairs]

    def train_dataloader(self) -> DataLoader[Any]:
        """The pairs of the sampler's epoch."""
        mean, std = self._normalisation()
        pairs = ImagePairs(
            self.train_views.query_files,
            self.train_views.reference_files,
            self.pairs,
            turn=self.turn,
            query_transform=training_transform(
                self.hparams["query_size"], mean, std, grid_ratio=self.hparams["query_grid_ratio"]
            ),
            reference_transform=training_transform(self.hparams["reference_size"], mean, std),
            sampler=self.sampler,
        )
        return DataLoader(pairs, batch_sampler=self.sampler, num_workers=self.workers, pin_memory=_pin())

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """This process's share of the held-out queries, then of the held-out references."""
        return self.plain_loaders(self.held_out)

    def plain_loaders(self, views: CrossViews) -> list[DataLoader[Any]]:
        """Undisturbed queries and references of a split.

        Process r of W has images r, r + W, …; the last shares are filled up from the first images, so
        that all have as many batches.
        """
        mean, std = self._normalisation()
        sizes = self.hparams["query_size"], self.hparams["reference_size"]
        return plain_loaders(
            views, sizes, (mean, std), batch_size=self.hparams["batch_size"], workers=self.workers
        )

    def begin_epoch(self, epoch: int) -> None:
        """Let the next batches be those of this epoch, from its first."""
        self.sampler.set_epoch(epoch)
        self.batches_done = 0

    def state_dict(self) -> dict[str, Any]:
        """Where in which epoch the run is."""
        return {"sampler": self.sampler.state_dict(self.batches_done)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there."""
        self.sampler.load_state_dict(state_dict["sampler"])
        self.batches_done = state_dict["sampler"]["batches_done"]

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        assert self.trainer is not None
        encoder = self.trainer.lightning_module.encoder
        return encoder.mean, encoder.std  # type: ignore[return-value]


def plain_loaders(
    views: CrossViews,
    sizes: tuple[Size, Size],
    normalisation: tuple[Numbers, Numbers],
    *,
    batch_size: int,
    workers: int,
) -> list[DataLoader[Any]]:
    """This process's share of a split's undisturbed queries and of its references.

    Args:
        views: the split.
        sizes: height and width that queries and references are resized to.
        normalisation: mean and standard deviation of each channel.
        batch_size: images at once.
        workers: processes that read images.
    """
    ranks = TrainingRanks.current()
    loaders: list[DataLoader[Any]] = []
    for files, size in zip((views.query_files, views.reference_files), sizes, strict=True):
        images = Images(files, plain_transform(size, *normalisation))
        share: DistributedSampler[torch.Tensor] = DistributedSampler(
            images, ranks.world, ranks.rank, shuffle=False
        )
        loaders.append(
            DataLoader(images, batch_size=batch_size, sampler=share, num_workers=workers, pin_memory=_pin())
        )
    return loaders


def _pin() -> bool:
    return torch.cuda.is_available()
