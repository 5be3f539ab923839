"""Photos as training batches for Lightning: from cached embeddings, or from the images themselves."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from geoclip.commands.options import image_encoder
from geoclip.datasets import read_photos
from geoclip.embedding_store import EmbeddingStore
from geoclip.image_batches import ImageRows, training_transform
from geoclip.photos import PhotoList
from geoclip.sampling import (
    Coverage,
    EpochBatchSampler,
    NeighbourBatchSampler,
    RandomBatchSampler,
    StepSampler,
    geographic_neighbours,
    similarity_neighbours,
    surprise_neighbours,
)
from geoclip.training_ranks import TrainingRanks
from semivario_kernels import VariogramModel

SamplerName: TypeAlias = Literal["random", "neighbours", "geographic", "similarity", "surprise"]
BROKEN_LIST = "broken.txt"


class PhotoBatches(LightningDataModule):
    """Batches of photos with their positions; one of `train` and `images` says where they come from.

    Args:
        train: folder of cached embeddings (`geoclip embed` writes it).
        images: photos, as `geoclip embed` takes them: a .csv or .parquet with path, latitude, longitude, or a
            folder. Every step reads and augments its own.
        image_root: folder where a table's relative paths start; the table's own by default.
        backbone: open_clip model that embeds `images`, or a .json file that configures one.
        pretrained: its open_clip tag or checkpoint file; "none" for random weights.
        augment: whether `images` pass the backbone's training transform (random crops) or its evaluation
            transform.
        augmentation: fields of open_clip's AugmentationCfg, for example {"scale": [0.5, 1.0]}; its own by
            default.
        max_broken: so many photos of `images` may be missing or broken, as each process meets them: they are
            left out of their batches and listed in broken.txt, each once however often it is met.
        batch_size: photos per batch, those of all processes together.
        sampler: "random"; "neighbours": random photos, each with those taken nearest to it, again in later
            batches; or one that takes every photo once an epoch, random ones with photos out of a table:
            "geographic", taken nearest (Sample4Geo); "similarity", the most similar embeddings; "surprise",
            more alike than the semivariogram expects, those apart that are alike because they are near.
        neighbours: photos that each seed of a "neighbours" batch brings.
        seeds: seeds per "neighbours" batch; as many as fit by default. Random photos fill the rest.
        ranked: photos in each row of the table, 4 bytes each. The table is made at the start of every run;
            "similarity" and "surprise" compare all pairs of the store, whose embeddings they hold in memory.
        nearest: first photos of its row that each seed brings.
        further: random ones of the rest of its row, as many as this.
        variogram: JSON file of the semivariogram, for "surprise"; the command line takes it from the model.
        workers: processes that read ahead; a memory-mapped store seldom needs one, images need one per core.
        seed: with the step, all there is to a batch.

    Raises:
        FileNotFoundError: there is no such store or list of photos.
        ValueError: it is none or damaged, it holds a test split, not one of `train` and `images` is given, or
            the sampler's arguments do not fit the data.
    """

    def __init__(
        self,
        train: str | None = None,
        images: str | None = None,
        image_root: str | None = None,
        backbone: str = "ViT-L-14",
        pretrained: str = "openai",
        augment: bool = True,
        augmentation: dict[str, Any] | None = None,
        max_broken: int = 0,
        batch_size: int = 1024,
        sampler: SamplerName = "random",
        neighbours: int = 7,
        seeds: int | None = None,
        ranked: int = 128,
        nearest: int = 32,
        further: int = 32,
        variogram: str | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # what a run that goes on must agree in: not where the data lie or who reads them
        self.save_hyperparameters(
            ignore=["train", "images", "image_root", "workers", "max_broken", "variogram"], logger=False
        )
        if (train is None) == (images is None):
            raise ValueError("data.train, data.images: wanted exactly one of them")
        if max_broken < 0:
            raise ValueError(f"max_broken: wanted at least 0, got {max_broken}")
        self.workers, self.max_broken = workers, max_broken
        self.broken: set[str] = set()  # names, of this process: every epoch meets the same photos again
        self.store: EmbeddingStore | None = None
        self.photos: PhotoList | None = None
        self.image_backbone: str | None = None
        self.image_pretrained: str | None = None
        self.image_backbone_config: dict[str, Any] | None = None
        latlon: NDArray[np.float64]
        if train is not None:
            self.store = EmbeddingStore.open(train)
            _refuse_test(f"data.train: {train}", self.store.info.get("split"))
            self.embedding_dim, self.embedding_info = self.store.dim, self.store.info
            latlon = self.store.latlon
        else:
            assert images is not None
            self.photos = read_photos(images, image_root=image_root)
            _refuse_test(f"data.images: {images}", self.photos.split)
            self.encoder = image_encoder(backbone, pretrained)
            # a checkpoint names what it needs: a file of the configuration may be gone
            self.image_backbone, self.image_pretrained = self.encoder.backbone, self.encoder.pretrained
            self.image_backbone_config = self.encoder.backbone_config
            self.embedding_dim, self.embedding_info = self.encoder.embedding_dim, self.encoder.source()
            latlon = self.photos.latlon
        self.hparams["rows"], self._latlon = len(latlon), latlon
        self.sampler: RandomBatchSampler | NeighbourBatchSampler | EpochBatchSampler
        if sampler == "random":
            self.sampler = RandomBatchSampler(len(latlon), batch_size, seed=seed)
        elif sampler == "neighbours":
            self.sampler = NeighbourBatchSampler(
                latlon, batch_size, neighbours=neighbours, seeds=seeds, seed=seed
            )
        else:
            near, apart = self._tables(sampler, latlon, ranked, variogram)
            self.sampler = EpochBatchSampler(
                len(latlon),
                batch_size,
                neighbours=near,
                avoid=apart,
                nearest=nearest,
                further=further,
                seed=seed,
                # a batch is that of all processes together, and each takes its share
                rank=0,
                world_size=1,
            )
            # other embeddings, another semivariogram or another machine's rounding: another run
            self.hparams["table_checksum"] = self.sampler.state_dict()["tables_checksum"]
        # other photos: another run. The ids of millions take seconds to read, and photos have their places
        self.hparams["latlon_checksum"] = zlib.crc32(np.ascontiguousarray(latlon).data)

    def train_dataloader(self) -> DataLoader[Any]:
        """All batches of the run from the trainer's step on, so that a resumed run goes on where it was.

        Raises:
            ValueError: fewer photos in a batch than processes, or processes with different tables.
        """
        trainer, ranks = self.trainer, TrainingRanks.current()
        assert trainer is not None
        if self.hparams["batch_size"] < ranks.world:
            raise ValueError(
                f"batch_size: wanted at least one photo for each of {ranks.world} processes, "
                f"got {self.hparams['batch_size']}"
            )
        checksum = self.hparams.get("table_checksum")
        if checksum is not None and checksum != ranks.from_first(checksum):
            raise ValueError(
                f"sampler: process {ranks.rank} made another table of photos than process 0; wanted the same "
                "data and the same kind of processor everywhere, or the sampler 'geographic'"
            )
        per_step = trainer.accumulate_grad_batches

        def step_and_share(step: int) -> NDArray[np.int64]:
            rows = self.sampler.batch(step)
            return np.concatenate(([step], rows[ranks.share(len(rows))]))

        batches = StepSampler(
            step_and_share, lambda: trainer.global_step * per_step, trainer.max_steps * per_step
        )
        return DataLoader(
            self._rows(),
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def coverage(self, step: int) -> Coverage | None:
        """What the sampler's epoch that begins with this step covers.

        None at other steps, and of the samplers "random" and "neighbours", which deal out no epochs.
        """
        if not isinstance(self.sampler, EpochBatchSampler) or step % len(self.sampler):
            return None
        return self.sampler.coverage(self._latlon, step // len(self.sampler))

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Count and list the photos that could not be read.

        Raises:
            ValueError: they are more than `max_broken`.
        """
        broken = {line.rpartition("\t")[0]: line for line in batch.pop("broken", [])}
        new = [line for name, line in broken.items() if name not in self.broken]
        if new:
            assert self.trainer is not None
            self.broken |= broken.keys()
            listed = Path(self.trainer.default_root_dir) / BROKEN_LIST
            with open(listed, "a+", encoding="utf-8", errors="surrogateescape") as file:
                file.seek(0)
                there = {line.rstrip("\n") for line in file}  # by another process, or before the run went on
                file.writelines(f"{line}\n" for line in new if line not in there)
            if len(self.broken) > self.max_broken:
                raise ValueError(
                    f"{new[-1].rpartition(chr(9))[2]} ({len(self.broken)} broken so far, max_broken is "
                    f"{self.max_broken}; see {listed})"
                )
        return batch

    def _tables(
        self, sampler: str, latlon: NDArray[np.float64], ranked: int, variogram: str | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
        """The photos that should come with each photo, and those that should not."""
        if sampler == "geographic":
            return geographic_neighbours(latlon, ranked), None
        if sampler not in ("similarity", "surprise"):
            raise ValueError(f"sampler: wanted one of {', '.join(get_args(SamplerName))}, got {sampler!r}")
        if self.store is None:
            raise ValueError(f"sampler: {sampler!r} compares cached embeddings (data.train), got images")
        embeddings = torch.from_numpy(self.store.read(np.arange(len(latlon))))
        if sampler == "similarity":
            return similarity_neighbours(embeddings, ranked), None
        if variogram is None:
            raise ValueError(
                "variogram: the sampler 'surprise' reads the semivariogram; wanted the JSON file that "
                "`geoclip variogram` writes, got None"
            )
        return surprise_neighbours(
            embeddings, latlon, VariogramModel.load(variogram), ranked, candidates=4 * ranked
        )

    def _rows(self) -> Dataset[dict[str, Any]]:
        if self.store is not None:
            return _StoreRows(self.store, self.hparams["seed"])
        assert self.photos is not None
        if self.hparams["augment"]:
            transform = training_transform(self.encoder, self.hparams["augmentation"])
        else:
            transform = self.encoder.preprocess
        return ImageRows(self.photos, transform, self.hparams["seed"])


class _StoreRows(Dataset[dict[str, Any]]):
    """A store whose rows are fetched by whole batches: the step, then the rows."""

    def __init__(self, store: EmbeddingStore, seed: int) -> None:
        self.store, self.seed = store, seed
        self.views = store.views if store.info.get("pictures") == "augmented" else 0

    def __getitems__(self, step_and_rows: list[int]) -> dict[str, Any]:
        step, index = step_and_rows[0], np.asarray(step_and_rows[1:])
        views = None
        if self.views:
            # each photo as it is or by one of its views: the step's choice, which a resumed run repeats
            views = np.random.default_rng((self.seed, step)).integers(0, self.views + 1, len(index))
        return {
            "rows": torch.from_numpy(index),
            "latlon": torch.from_numpy(self.store.latlon[index]),
            "embeddings": torch.from_numpy(self.store.read(index, views)),
        }


def _refuse_test(source: str, split: str | None) -> None:
    if split == "test":
        raise ValueError(f"{source} holds the test split: training on it makes the test worthless")


def _as_it_is(batch: Any) -> Any:
    return batch
