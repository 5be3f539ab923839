"""Images of both views as torch data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from geoclip.crossview.transforms import TurnTogether
from geoclip.sampling import EpochBatchSampler


def read_pixels(path: Path) -> torch.Tensor:
    """(3, H, W) uint8; ValueError names a file that is no image."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except FileNotFoundError:
        raise
    except Exception as error:  # what Pillow raises depends on the format and on the damage
        raise ValueError(f"{path}: not a readable image: {error}") from error


class ImagePairs(Dataset[dict[str, torch.Tensor]]):
    """Queries with their references, turned together and disturbed; the same at the same (seed, epoch, row).

    Args:
        query_files: N images.
        reference_files: M images.
        pairs: (N,) reference of every query.
        turn: what happens to both views.
        query_transform: what then happens to the query.
        reference_transform: what then happens to the reference.
        sampler: knows the epoch and the seed.
    """

    def __init__(
        self,
        query_files: Sequence[Path],
        reference_files: Sequence[Path],
        pairs: NDArray[np.int64],
        *,
        turn: TurnTogether,
        query_transform: nn.Module,
        reference_transform: nn.Module,
        sampler: EpochBatchSampler,
    ) -> None:
        self.query_files, self.reference_files, self.pairs = query_files, reference_files, pairs
        self.turn, self.sampler = turn, sampler
        self.query_transform, self.reference_transform = query_transform, reference_transform

    def __len__(self) -> int:
        return len(self.query_files)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        reference_row = int(self.pairs[row])
        query = read_pixels(self.query_files[row])
        reference = read_pixels(self.reference_files[reference_row])
        entropy = np.random.SeedSequence((self.sampler.seed, self.sampler.epoch, row))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
            query, reference = self.turn(query, reference)
            query, reference = self.query_transform(query), self.reference_transform(reference)
        return {
            "query": query,
            "reference": reference,
            "query_row": torch.tensor(row),
            "reference_row": torch.tensor(reference_row),
        }


class Images(Dataset[torch.Tensor]):
    """Images of one view, in their order."""

    def __init__(self, files: Sequence[Path], transform: nn.Module) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        image: torch.Tensor = self.transform(read_pixels(self.files[row]))
        return image
