"""Photos to an embedding store: the frozen backbone runs over every image once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.image_encoder import ImageEncoder, read_image
from geoclip.photos import PhotoList
from geoclip.progress import progress_bar

# On a slow machine a full shard is hours of work: whatever there is gets written after so long.
_FLUSH_SECONDS = 300.0


def embed_photos(
    photos: PhotoList,
    out: str | Path,
    *,
    image_encoder: ImageEncoder,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
    max_broken: int = 0,
) -> EmbeddingStore:
    """Embeds photos into a store, going on where an earlier call was interrupted.

    Photos whose id is already in the store are not read again, so a list that has grown is embedded by the
    same call. Runs on the device of the encoder's parameters.

    Args:
        photos: the photos, see `read_photos`.
        out: the store's folder.
        image_encoder: its `embed` and `preprocess` are used; the store holds (N, E), not normalised.
        batch_size: images per step.
        workers: processes that read images; by default one per core, at most 16. 0 reads in this process.
        progress: whether to show a bar with images/s and the time left.
        max_broken: so many images may be missing or broken: they are left out and listed, with the reason, in
            `<out>/broken.txt`.

    Returns:
        The complete store.

    Raises:
        ValueError: more than `max_broken` images cannot be read (the message names the last one; all that was
            done is kept), bad arguments, or `out` holds the embeddings of other photos or another backbone.
        OSError: the store cannot be written.
    """
    workers = min(os.cpu_count() or 1, 16) if workers is None else workers
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("max_broken", max_broken, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, wanted at least {least}")
    device = next(image_encoder.parameters()).device
    info = {"backbone": image_encoder.backbone, "pretrained": image_encoder.pretrained}
    preprocess = image_encoder.preprocess  # loads the backbone: before the folder is made, should it fail
    writer = EmbeddingWriter(out, image_encoder.embedding_dim, info=info)
    todo = _not_done(photos, writer.finished())
    loader = DataLoader(
        _Images(photos, todo, preprocess),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    broken_list = Path(out) / "broken.txt"
    broken_list.unlink(missing_ok=True)  # those of an earlier run are tried again
    broken, flushed = 0, time.monotonic()
    with (
        writer,
        progress_bar(
            "embedding", len(photos), "images", completed=len(photos) - len(todo), enabled=progress
        ) as advance,
        torch.inference_mode(),
    ):
        for rows, images, failures in loader:
            if len(rows):
                embeddings = image_encoder.embed(images.to(device, non_blocking=True))
                ids = photos.ids.take(rows).to_pylist()
                writer.append(ids, photos.latlon[rows], embeddings.float().cpu().numpy())
            for path, reason in failures:
                broken += 1
                with open(broken_list, "a", encoding="utf-8") as file:
                    file.write(f"{path}\t{reason}\n")
                if broken > max_broken:
                    raise ValueError(
                        f"{reason} ({broken} broken so far, max_broken is {max_broken}; see {broken_list})"
                    )
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                writer.flush()
                flushed = time.monotonic()
            advance(len(rows) + len(failures))
    return EmbeddingStore.open(out)


def _not_done(photos: PhotoList, done: EmbeddingStore) -> np.ndarray:
    """The rows of the list that the store has not yet, after a check that it is this list's store."""
    position = pc.index_in(done.ids, value_set=photos.ids)
    if position.null_count:
        stranger = done.ids.filter(pc.is_null(position))[0].as_py()
        raise ValueError(f"{done.path} holds other photos, {stranger!r} for one: choose another folder")
    rows = position.to_numpy()
    moved = (photos.latlon[rows] != done.latlon).any(axis=1)
    if moved.any():
        where = photos.ids[rows[np.argmax(moved)]].as_py()
        raise ValueError(f"{done.path} has another position for {where!r}: choose another folder")
    return np.setdiff1d(np.arange(len(photos)), rows)


class _Images(Dataset[tuple[int, str, Tensor | str]]):
    """Preprocessed images; one that cannot be read gives the reason instead, in one line."""

    def __init__(
        self, photos: PhotoList, rows: np.ndarray, preprocess: Callable[[Image.Image], Tensor]
    ) -> None:
        self.paths, self.rows, self.preprocess = photos.paths, rows, preprocess

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, str, Tensor | str]:
        row = int(self.rows[i])
        path = self.paths[row].as_py()
        try:
            image = read_image(path)
        except (OSError, ValueError) as error:
            return row, path, " ".join(str(error).split())
        return row, path, self.preprocess(image)


def _collate(
    samples: list[tuple[int, str, Tensor | str]],
) -> tuple[np.ndarray, Tensor, list[tuple[str, str]]]:
    """Splits a batch into (rows, images, failures)."""
    read = [(row, image) for row, _, image in samples if isinstance(image, Tensor)]
    failures = [(path, reason) for _, path, reason in samples if isinstance(reason, str)]
    images = torch.stack([image for _, image in read]) if read else torch.empty(0)
    return np.array([row for row, _ in read], dtype=np.int64), images, failures
