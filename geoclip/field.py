"""The demo's data: the pretrained location encoder's field at real places, with noise, instead of photos.

The official location encoder saw the embeddings of 4.7 million geotagged photos while it was trained, so its
output at a place is close to what the photos there look like. Each of the 100,000 gallery rows becomes one
"image": the field at its place plus noise of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn.functional import normalize

from geoclip.coordinates import check_latlon
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.location_encoder import LocationEncoder
from geoclip.progress import progress_bar
from geoclip.upstream import read_gallery
from semivario_kernels.atomic import write_atomically

# 2,048 places are 20 MB of activations, and large enough for the matrix products to run at full speed
_CHUNK = 2048


def pretrained_field(
    latlon: ArrayLike, *, encoder: nn.Module | None = None, progress: bool = False
) -> torch.Tensor:
    """The location encoder's unit embedding of each place.

    Args:
        latlon: (n, 2) latitudes and longitudes in degrees.
        encoder: module from (n, 2) float32 degrees to (n, D); by default the official one, D = 512.
        progress: whether to show a bar.

    Returns:
        (n, D) float32 unit vectors on the CPU.

    Raises:
        ValueError: latlon is not (n, 2) finite degrees, or is empty.
        geoclip.upstream.UpstreamUnavailable: the official weights are needed and cannot be fetched.
    """
    places = np.asarray(latlon, dtype=np.float64)
    check_latlon(places, "latlon")
    if not len(places):
        raise ValueError("latlon has no rows, wanted at least one place")
    encoder = LocationEncoder() if encoder is None else encoder
    inputs = torch.from_numpy(places).float()
    out = []
    with torch.no_grad(), progress_bar("encoding places", len(places), "places", enabled=progress) as advance:
        for start in range(0, len(inputs), _CHUNK):
            chunk = inputs[start : start + _CHUNK]
            out.append(normalize(encoder(chunk), dim=1))
            advance(len(chunk))
    return torch.cat(out)


def write_field_world(
    out: str | Path,
    *,
    noise: float = 0.8,
    held_out: int = 4000,
    seed: int = 0,
    progress: bool = True,
    encoder: nn.Module | None = None,
    gallery: ArrayLike | None = None,
) -> tuple[EmbeddingStore, EmbeddingStore]:
    """Writes the demo's training and test embeddings, or opens them where an earlier call has.

    Some distinct places are held out: all gallery rows there leave the training set, and the first row of
    each makes the test set. `<out>/train` and `<out>/test` are embedding stores, whose ids are the gallery's
    row numbers; `<out>/gallery.npy` is the (P, 2) float64 array of distinct places, held-out ones included,
    that predictions are looked up in.

    Args:
        out: folder to write to.
        noise: length of the noise added to the unit field before the sum is normalised again.
        held_out: number of distinct places that only the test set has.
        seed: of the noise and of the choice of places.
        progress: whether to show a bar.
        encoder: as in `pretrained_field`.
        gallery: (n, 2) latitudes and longitudes in degrees, one row per "image"; by default the official
            100,000.

    Returns:
        The training and the test store.

    Raises:
        ValueError: bad arguments, or `out` holds a world made with others.
        geoclip.upstream.UpstreamUnavailable: official weights or coordinates are needed and not to be had.
    """
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is {noise}, wanted a finite number, 0 or larger")
    rows_latlon = np.asarray(read_gallery() if gallery is None else gallery, dtype=np.float64)
    check_latlon(rows_latlon, "gallery")
    # the encoder works in float32: places equal there are one place to it
    _, first_row, place_of_row = np.unique(
        rows_latlon.astype(np.float32), axis=0, return_index=True, return_inverse=True
    )
    places = rows_latlon[first_row]
    if not 1 <= held_out < len(places):
        raise ValueError(
            f"held_out is {held_out}, wanted 1 to {len(places) - 1}: gallery has {len(places)} places"
        )

    out = Path(out)
    encoder = LocationEncoder() if encoder is None else encoder
    info = {
        "source": "no photo was used: the pretrained location encoder's field at each place, plus noise",
        "encoder": _digest(*encoder.state_dict().values()),
        "gallery": _digest(torch.from_numpy(rows_latlon)),
        "noise": float(noise),
        "held_out": held_out,
        "seed": seed,
    }
    dim = pretrained_field(places[:1], encoder=encoder).shape[1]
    # opened before the long work, so that a folder with another world is refused at once
    writers = {split: EmbeddingWriter(out / split, dim, info=info) for split in ("train", "test")}
    if not all(writer.complete for writer in writers.values()):
        generator = torch.Generator().manual_seed(seed)
        test_places = torch.randperm(len(places), generator=generator)[:held_out].numpy()
        train_rows = np.flatnonzero(~np.isin(place_of_row, test_places))
        rows_of = {"train": train_rows, "test": np.sort(first_row[test_places])}

        field = pretrained_field(places, encoder=encoder, progress=progress)
        write_atomically(out / "gallery.npy", lambda file: np.save(file, places))
        for split, writer in writers.items():
            rows, done = rows_of[split], writer.rows_done
            with writer:
                for start in range(0, len(rows), _CHUNK):
                    chunk = rows[start : start + _CHUNK]
                    # drawn for rows that are done too: the others get the noise they would have had
                    directions = normalize(torch.randn(len(chunk), dim, generator=generator), dim=1)
                    samples = normalize(field[place_of_row[chunk]] + noise * directions, dim=1).numpy()
                    new = slice(max(0, done - start), None)
                    writer.append(chunk[new], rows_latlon[chunk[new]], samples[new])
    return EmbeddingStore.open(out / "train"), EmbeddingStore.open(out / "test")


def _digest(*tensors: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
