"""Places drawn once that are negatives of every step, beside the queue of recent ones."""

from __future__ import annotations

import numpy as np
import torch

from geoclip.embedding_store import EmbeddingStore
from geoclip.fixed_precision import FixedPrecisionBuffers
from geoclip.places import read_places
from geoclip.queue import NO_ROW
from geoclip.training_ranks import TrainingRanks


class GalleryNegatives(FixedPrecisionBuffers):
    """M places; those of training photos come with the photos' embeddings, all others count as "no image".

    Every rank keeps all positions and rows, 24 bytes a place, and the embeddings of its own share. None of it
    is in a checkpoint: the seed draws the same places again.

    Attributes:
        latlon: (M, 2) float64 degrees.
        rows: (M,) row of the photo in the training data, NO_ROW for a place without one.
    """

    latlon: torch.Tensor
    rows: torch.Tensor
    _with_room: torch.Tensor

    def __init__(self, latlon: torch.Tensor, rows: torch.Tensor, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("latlon", latlon, persistent=False)
        self.register_buffer("rows", rows, persistent=False)
        # behind as much room as the longest batch and queue have asked for
        self.register_buffer("_with_room", embeddings, persistent=False)
        self._own = len(embeddings)

    def __len__(self) -> int:
        return len(self.latlon)

    @property
    def embeddings(self) -> torch.Tensor:
        """(own share, E) float16, zeros where there is no image."""
        return self._with_room[len(self._with_room) - self._own :]

    def behind(self, *others: torch.Tensor) -> torch.Tensor:
        """Put the embeddings behind others, as torch.cat, without a copy of them: 150 MB of 100,000 places.

        Args:
            others: (n, E) each, of any floating dtype.

        Returns:
            (sum of n + own share, E) float16, which the next call overwrites.
        """
        lengths = [len(other) for other in others]
        room = len(self._with_room) - self._own
        if sum(lengths) > room:
            longer = self._with_room.new_empty(sum(lengths) + self._own, self._with_room.shape[1])
            longer[sum(lengths) :] = self.embeddings
            self._with_room, room = longer, sum(lengths)
        together = self._with_room[room - sum(lengths) :]
        start = 0
        for other in others:
            together[start : start + len(other)] = other
            start += len(other)
        return together

    @classmethod
    def draw(
        cls,
        source: str,
        size: int,
        *,
        store: EmbeddingStore | None,
        dim: int,
        seed: int,
        ranks: TrainingRanks,
    ) -> GalleryNegatives:
        """Draw `size` places without repetition, all of the source where it has no more.

        Args:
            source: "train" for places of the training photos, else what `read_places` takes.
            size: places wanted; 0 draws none.
            store: the training data, where it is cached embeddings.
            dim: E.
            seed: of the choice.
            ranks: whose share of the embeddings is read.

        Raises:
            FileNotFoundError: the source names no file.
            ValueError: a bad `size`, a bad source, or "train" without cached embeddings.
            UpstreamUnavailable: the official places cannot be fetched.
        """
        if size < 0:
            raise ValueError(f"gallery: wanted at least 0 places, got {size}")
        if size == 0:
            latlon = np.empty((0, 2))
        elif source == "train":
            if store is None:
                raise ValueError(
                    "gallery_source: 'train' reads cached embeddings (data.train), which this run has not; "
                    "wanted 'upstream' or a file of places"
                )
            latlon = store.latlon
        else:
            latlon = read_places(source)
        chosen = np.sort(np.random.default_rng((seed, 1)).permutation(len(latlon))[:size])
        own = ranks.share(len(chosen))
        if size and source == "train" and store is not None:
            rows = torch.from_numpy(chosen)
            embeddings = torch.from_numpy(store.copy(chosen[own]))
        else:
            rows = torch.full((len(chosen),), NO_ROW)
            embeddings = torch.zeros(own.stop - own.start, dim, dtype=torch.float16)
        return cls(torch.from_numpy(latlon[chosen]), rows, embeddings)
