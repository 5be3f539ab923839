"""Cached embeddings as training batches for Lightning."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from geoclip.embedding_store import EmbeddingStore
from geoclip.sampling import NeighbourBatchSampler, RandomBatchSampler, StepSampler

Batch = dict[str, torch.Tensor]


class EmbeddingBatches(LightningDataModule):
    """Batches of photos' embeddings and positions out of an embedding store.

    Args:
        train: folder of the store (`geoclip embed` writes it).
        batch_size: photos per step.
        sampler: "random", or "neighbours": random photos, each with those taken nearest to it.
        neighbours: photos that each seed of a "neighbours" batch brings.
        seeds: seeds per "neighbours" batch; as many as fit by default. Random photos fill the rest.
        workers: processes that read ahead; a memory-mapped store seldom needs one.
        seed: with the step, all there is to a batch.

    Raises:
        FileNotFoundError: there is no such store.
        ValueError: it is none or damaged, or the sampler's arguments do not fit it.
    """

    def __init__(
        self,
        train: str,
        batch_size: int = 1024,
        sampler: Literal["random", "neighbours"] = "random",
        neighbours: int = 7,
        seeds: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # what a run that goes on must agree in: not where the store lies or who reads it
        self.save_hyperparameters(ignore=["train", "workers"], logger=False)
        self.store = EmbeddingStore.open(train)
        self.hparams["rows"] = len(self.store)
        self.embedding_dim = self.store.dim
        self.embedding_info = self.store.info
        self.workers = workers
        self.sampler: RandomBatchSampler | NeighbourBatchSampler
        if sampler == "random":
            self.sampler = RandomBatchSampler(len(self.store), batch_size, seed=seed)
        elif sampler == "neighbours":
            self.sampler = NeighbourBatchSampler(
                self.store.latlon, batch_size, neighbours=neighbours, seeds=seeds, seed=seed
            )
        else:
            raise ValueError(f"sampler: wanted 'random' or 'neighbours', got {sampler!r}")

    def train_dataloader(self) -> DataLoader[Any]:
        """All batches of the run from the trainer's step on, so that a resumed run goes on where it was."""
        trainer = self.trainer
        assert trainer is not None
        per_step = trainer.accumulate_grad_batches
        batches = StepSampler(
            self.sampler.batch, lambda: trainer.global_step * per_step, trainer.max_steps * per_step
        )
        return DataLoader(
            _StoreRows(self.store), batch_sampler=batches, num_workers=self.workers, collate_fn=_as_it_is
        )


class _StoreRows(Dataset[Batch]):
    """A store whose rows are fetched by whole batches."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store

    def __getitems__(self, rows: list[int]) -> Batch:
        index = np.asarray(rows)
        return {
            "rows": torch.from_numpy(index),
            "latlon": torch.from_numpy(self.store.latlon[index]),
            "embeddings": torch.from_numpy(self.store.read(index)),
        }


def _as_it_is(batch: Any) -> Any:
    return batch
