"""Photos to an embedding store: the frozen backbone runs over every image once."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geoclip.coordinates import check_latlon
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.image_encoder import ImageEncoder, read_image
from geoclip.photos import PhotoList
from geoclip.progress import progress_bar
from geoclip.ranks import Ranks
from geoclip.views import CROPS, AugmentedViews, PlainView, TenCrops, Views
from semivario_kernels.atomic import write_atomically

# On a slow machine a full shard is hours of work: whatever there is gets written after so long.
_FLUSH_SECONDS = 300.0

Precision = Literal["auto", "fp32", "fp16", "bf16"]
_AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def embed_photos(
    photos: PhotoList,
    out: str | Path,
    *,
    image_encoder: ImageEncoder,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
    max_broken: float = 0,
    views: int = 0,
    tencrop: bool = False,
    precision: Precision = "auto",
    seed: int = 0,
    tuned: str | None = None,
) -> EmbeddingStore:
    """Embeds photos into a store, going on where an earlier call was interrupted.

    Photos whose id is already in the store are not read again, so a list that has grown is embedded by the
    same call. Runs on the device of the encoder's parameters. Under torchrun each process embeds an equal
    part of what is left and writes shards of its own; any number of them goes on with what others began.

    Args:
        photos: the photos, see `geoclip.datasets.read_photos`.
        out: the store's folder.
        image_encoder: its `embed` and `preprocess` are used; the store holds (N, E), not normalised.
        batch_size: photos per step.
        workers: processes that read images; by default one per core, at most 16. 0 reads in this process.
        progress: whether to show a bar with images/s and the time left.
        max_broken: so many images may be missing or broken, a fraction of all where it is below 1: they are
            left out and listed, with the reason, in `<out>/broken.txt`.
        views: random augmented views of each photo, stored beside it; see `AugmentedViews`.
        tencrop: store the mean of the embeddings of ten crops as the photo's, and the ten as its views; see
            `TenCrops`. For evaluation: GeoCLIP averages the ten predictions.
        precision: of the backbone: "fp16" or "bf16" by autocast, "fp32"; "auto" is fp16 on a GPU, else fp32.
        seed: of the augmentations.
        tuned: fingerprint of the encoder's weights where a run trained them, see `geoclip.weights`.

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
        ("views", views, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, wanted at least {least}")
    if tencrop and views:
        raise ValueError(f"tencrop: wanted without views, which are for training, got views={views}")
    if precision not in ("auto", *_AUTOCAST):
        raise ValueError(f"precision: wanted auto, fp32, fp16 or bf16, got {precision!r}")
    limit = int(max_broken * len(photos)) if max_broken < 1 else int(max_broken)
    make_views = _views(image_encoder, views, tencrop, seed)  # loads the backbone, before the folder is made
    info = _info(photos, image_encoder, views, tencrop, seed)
    if tuned is not None:
        info["tuned"] = tuned
    ranks = Ranks()
    if ranks.rank:
        ranks.wait("begun")
    stored_views = CROPS if tencrop else views
    writer = EmbeddingWriter(out, image_encoder.embedding_dim, info=info, views=stored_views, rank=ranks.rank)
    broken = _Broken(Path(out), limit, ranks)
    if ranks.rank == 0:
        ranks.wait("begun")
    todo = _not_done(photos, writer.finished())
    if ranks.rank == 0:
        broken.forget()  # those of an earlier run are tried again
        if len(todo):
            writer.reopen()
    ranks.wait("listed")  # nobody writes before everybody has seen the same store
    mine = np.array_split(todo, ranks.world)[ranks.rank]
    embed = _Embed(image_encoder, precision, tencrop)
    loader = DataLoader(
        _Images(photos, mine, make_views),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=embed.device.type == "cuda",
    )
    shown, flushed = 0, time.monotonic()
    with (
        broken,
        writer,
        progress_bar(
            "embedding",
            len(photos),
            "images",
            completed=len(photos) - len(todo),
            enabled=progress and ranks.rank == 0,
        ) as advance,
    ):
        for rows, images, failures in loader:
            if len(rows):
                embeddings, others = embed(images)
                areas = {name: column.take(rows) for name, column in photos.areas.items()}
                ids = photos.ids.take(rows).to_pylist()
                writer.append(ids, photos.latlon[rows], embeddings, views=others, areas=areas)
            for path, reason in failures:
                broken.add(path, reason)
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                writer.flush()
                broken.write()
                flushed = time.monotonic()
            done = ranks.add("done", len(rows) + len(failures))
            advance(done - shown)
            shown = done
        writer.flush()
        broken.write()
        ranks.wait("embedded")
        if ranks.rank == 0:
            broken.gather()
    ranks.wait("complete")
    ranks.leave()
    return EmbeddingStore.open(out)


def _info(
    photos: PhotoList, image_encoder: ImageEncoder, views: int, tencrop: bool, seed: int
) -> dict[str, Any]:
    """What the store says of itself: the backbone, and what else there is to say."""
    info = image_encoder.source()
    if photos.dataset is not None:
        info["dataset"] = photos.dataset
    if photos.split is not None:
        info["split"] = photos.split
    if tencrop:
        info["pictures"] = "tencrop"
    if views:
        info |= {"pictures": "augmented", "seed": seed}
    return info


def _views(image_encoder: ImageEncoder, views: int, tencrop: bool, seed: int) -> Views:
    preprocess = image_encoder.preprocess
    if tencrop:
        return TenCrops(image_encoder.preprocess_config)
    if views:
        return AugmentedViews(preprocess, image_encoder.preprocess_config, views, seed)
    return PlainView(preprocess)


def _not_done(photos: PhotoList, done: EmbeddingStore) -> np.ndarray:
    """The rows of the list that the store has not yet, after a check that it is this list's store."""
    position = pc.index_in(done.ids, value_set=photos.ids)
    if position.null_count:
        stranger = done.ids.filter(pc.is_null(position))[0].as_py()
        raise ValueError(f"{done.path} holds other photos, {stranger!r} for one: choose another folder")
    rows = position.to_numpy()
    # a list made by hand may count longitudes up to 360°
    moved = (check_latlon(photos.latlon, "photos")[rows] != done.latlon).any(axis=1)
    if moved.any():
        where = photos.ids[rows[np.argmax(moved)]].as_py()
        raise ValueError(f"{done.path} has another position for {where!r}: choose another folder")
    return np.setdiff1d(np.arange(len(photos)), rows)


class _Embed:
    """Batches of pictures (n, V, 3, H, W) to the photos' embeddings and those of their other pictures."""

    def __init__(self, image_encoder: ImageEncoder, precision: Precision, tencrop: bool) -> None:
        self.image_encoder, self.tencrop = image_encoder, tencrop
        self.device = next(image_encoder.parameters()).device
        if precision == "auto":
            precision = "fp16" if self.device.type == "cuda" else "fp32"
        self.dtype = _AUTOCAST[precision]

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        photos, count = pictures.shape[:2]
        flat = pictures.flatten(0, 1).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            embedded = self.image_encoder.embed(flat)
        embedded = embedded.float().reshape(photos, count, -1)
        if self.tencrop:
            return embedded.mean(dim=1).cpu().numpy(), embedded.cpu().numpy()
        first = embedded[:, 0].cpu().numpy()
        return first, embedded[:, 1:].cpu().numpy() if count > 1 else None


class _Broken:
    """The images that could not be read: counted over all ranks, listed in `<out>/broken.txt`."""

    def __init__(self, out: Path, limit: int, ranks: Ranks) -> None:
        self._out, self._limit, self._ranks = out, limit, ranks
        self._file = out / ("broken.txt" if ranks.rank == 0 else f"broken-{ranks.rank:04d}.txt")
        self._lines: list[str] = []
        self._written = 0

    def __enter__(self) -> _Broken:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # on a full disk another error has been raised already
            self.write()

    def forget(self) -> None:
        """Removes the lists of an earlier run."""
        for file in self._out.glob("broken*.txt"):
            file.unlink(missing_ok=True)

    def add(self, path: str, reason: str) -> None:
        """Counts an image.

        Raises:
            ValueError: there are too many.
        """
        self._lines.append(f"{path}\t{reason}\n")
        total = self._ranks.add("broken", 1)
        if total > self._limit:
            raise ValueError(
                f"{reason} ({total} broken so far, max_broken is {self._limit}; see {self._file})"
            )

    def write(self) -> None:
        """Brings the list on disk up to date."""
        if len(self._lines) > self._written:
            text = "".join(self._lines).encode("utf-8", "surrogateescape")
            write_atomically(self._file, lambda file: file.write(text))
            self._written = len(self._lines)

    def gather(self) -> None:
        """Makes one list of all ranks' lists."""
        others = sorted(self._out.glob("broken-*.txt"))
        for file in others:
            self._lines += file.read_text("utf-8", "surrogateescape").splitlines(keepends=True)
        self.write()
        for file in others:
            file.unlink()


class _Images(Dataset[tuple[int, str, Tensor | str]]):
    """Pictures of photos; one that cannot be read gives the reason instead, in one line."""

    def __init__(self, photos: PhotoList, rows: np.ndarray, views: Views) -> None:
        self.images, self.ids, self.rows, self.views = photos.images, photos.ids, rows, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, str, Tensor | str]:
        row = int(self.rows[i])
        name = self.images.name(row)
        try:
            image = read_image(self.images.read(row), name)
        except (OSError, ValueError) as error:
            return row, name, " ".join(str(error).split())
        return row, name, self.views(image, self.ids[row].as_py())


def _collate(
    samples: list[tuple[int, str, Tensor | str]],
) -> tuple[np.ndarray, Tensor, list[tuple[str, str]]]:
    """Splits a batch into (rows, pictures, failures)."""
    read = [(row, image) for row, _, image in samples if isinstance(image, Tensor)]
    failures = [(path, reason) for _, path, reason in samples if isinstance(reason, str)]
    images = torch.stack([image for _, image in read]) if read else torch.empty(0)
    return np.array([row for row, _ in read], dtype=np.int64), images, failures
