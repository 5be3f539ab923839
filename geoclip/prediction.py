"""Photos to places: files, folders and lists of them are read in threads, embedded and located in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geoclip.embedding_store import EmbeddingStore, is_store
from geoclip.evaluation import pictures_of
from geoclip.gallery import Gallery, Located, MapCells
from geoclip.image_encoder import ImageEncoder, read_image
from semivario_kernels import VariogramModel

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SHARES = (0.5, 0.9)  # of the probability, whose radii every prediction carries


# names of photos and their frozen embeddings, (n, E), or (n, V, E) of V pictures each
Batch = tuple[list[str], torch.Tensor]


@dataclass(frozen=True)
class Prediction:
    """Where one photo may have been taken.

    Attributes:
        photo: its path, or its id in an embedding store.
        latlon: (k, 2) latitude and longitude in degrees, best first.
        probability: (k,) of each place alone; with a semivariogram it need not fall with the rank.
        radius_km: (2,) radius around the first place that holds half, and nine tenths, of the probability.
        density: (C,) probability of each of `cells`; None without them.
        cells: of the density.
    """

    photo: str
    latlon: NDArray[np.float64]
    probability: NDArray[np.float32]
    radius_km: NDArray[np.float64]
    density: NDArray[np.float32] | None
    cells: MapCells | None


def find_photos(sources: Iterable[str], listed: Iterable[str]) -> list[str]:
    """The photos that the sources name, in their order.

    Args:
        sources: files, taken as they are; folders, searched with their subfolders for the usual suffixes; or
            "-" for `listed`.
        listed: paths, one a line; empty lines do not count.

    Raises:
        ValueError: a folder holds no photo, or stored embeddings.
    """
    photos: list[str] = []
    for source in sources:
        if source == "-":
            photos += [path for line in listed if (path := line.rstrip("\r\n"))]
        elif Path(source).is_dir():
            found = sorted(str(path) for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES)
            if not found and is_store(source):
                raise ValueError(f"{source} holds embeddings: wanted alone, without other photos")
            if not found:
                raise ValueError(f"{source} holds no photo ({', '.join(SUFFIXES)})")
            photos += found
        else:
            photos.append(source)
    return photos


def embed_files(
    paths: Iterable[str], tower: ImageEncoder, *, batch_size: int, on_broken: Callable[[str], None]
) -> Iterator[Batch]:
    """Read and embed photos; while the tower works on a batch, threads read the next one.

    Args:
        paths: of the photos.
        tower: its preprocessing and its `embed` are used, on the device of its parameters.
        batch_size: photos per step.
        on_broken: called with a line that names a photo that cannot be read; it is left out.
    """
    device = next(tower.parameters()).device
    preprocess = tower.preprocess
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        waiting = iter(paths)
        ahead = _submit(pool, islice(waiting, batch_size), preprocess)
        while ahead:
            batch, ahead = ahead, _submit(pool, islice(waiting, batch_size), preprocess)
            names, images = [], []
            for path, future in batch:
                image = future.result()
                if isinstance(image, str):
                    on_broken(image)
                else:
                    names.append(path)
                    images.append(image)
            if names:
                yield names, tower.embed(torch.stack(images).to(device)).float()


def stored_embeddings(store: EmbeddingStore, *, batch_size: int) -> Iterator[Batch]:
    """The photos of an embedding store, under their ids; of those stored as ten crops, all crops.

    Raises:
        ValueError: an embedding is not finite.
    """
    for start in range(0, len(store), batch_size):
        rows = np.arange(start, min(start + batch_size, len(store)))
        yield store.ids.slice(start, len(rows)).to_pylist(), pictures_of(store, rows)


def predict(
    batches: Iterable[Batch],
    gallery: Gallery,
    k: int,
    cells: MapCells | None = None,
    variogram: VariogramModel | None = None,
) -> Iterator[Prediction]:
    """Locate the photos of every batch.

    Args:
        batches: names and embeddings.
        gallery: the places to choose from.
        k: places per photo.
        cells: of a map of the probability; None for no map.
        variogram: as in `Gallery.place`.

    Raises:
        ValueError: as in `Gallery.locate`.
    """
    for names, embeddings in batches:
        located: Located = gallery.locate(embeddings, k, shares=SHARES, cells=cells, variogram=variogram)
        for i, name in enumerate(names):
            density = None if located.density is None else located.density[i]
            yield Prediction(
                name, located.latlon[i], located.probability[i], located.radius_km[i], density, cells
            )


def _submit(
    pool: ThreadPoolExecutor, paths: Iterable[str], preprocess: Callable[[Image.Image], torch.Tensor]
) -> Sequence[tuple[str, Future[torch.Tensor | str]]]:
    return [(path, pool.submit(_read, path, preprocess)) for path in paths]


def _read(path: str, preprocess: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor | str:
    """The preprocessed photo, or what is wrong with it."""
    try:
        return preprocess(read_image(path))
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    except ValueError as error:
        return " ".join(str(error).split())
