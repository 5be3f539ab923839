"""Placing embedded photos: the gallery is encoded once, in chunks, and searched a few photos at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from geoclip.coordinates import check_latlon
from geoclip.embedding_store import EmbeddingStore
from geoclip.model import GeoCLIP
from geoclip.progress import progress_bar
from geoclip.upstream import read_gallery
from semivario_kernels import topk_gallery

LatLon = NDArray[np.float64]

_PLACES_AT_ONCE = 4096  # 16 MB per activation of width 1,024
_PHOTOS_AT_ONCE = 64  # 26 MB of similarities to 100,000 places


class Gallery:
    """Places to choose from, with the features that a model gives them.

    Args:
        model: gives the places, and the photos to be placed, their features.
        latlon: (M, 2) latitude and longitude in degrees.
        progress: whether to show bars.

    Raises:
        ValueError: `latlon` is not (M, 2) finite degrees with M ≥ 1.
    """

    def __init__(self, model: GeoCLIP, latlon: LatLon, *, progress: bool = False) -> None:
        check_latlon(latlon, "gallery")
        if not len(latlon):
            raise ValueError("gallery: wanted at least one place, got none")
        self.model, self.latlon, self.progress = model, latlon, progress
        places = torch.from_numpy(latlon).float()
        self.features = self._in_chunks(model.location_encoder, places, _PLACES_AT_ONCE, "encoding places")

    def place(self, embeddings: torch.Tensor, k: int = 1) -> tuple[LatLon, NDArray[np.float32]]:
        """Find the k places that fit each photo best.

        Args:
            embeddings: (n, E) frozen embeddings of the photos.
            k: places per photo, at most M.

        Returns:
            latlon: (n, k, 2) latitude and longitude in degrees, best first.
            similarity: (n, k) cosines of the features.

        Raises:
            ValueError: wrong shapes, or k outside 1 … M.
        """
        x = self._in_chunks(self.model.image_encoder, embeddings, _PLACES_AT_ONCE, None)
        similarity = np.empty((len(x), k), dtype=np.float32)
        index = np.empty((len(x), k), dtype=np.int64)
        with progress_bar("placing photos", len(x), "photos", enabled=self.progress) as advance:
            for start in range(0, len(x), _PHOTOS_AT_ONCE):
                some = slice(start, start + _PHOTOS_AT_ONCE)
                values, indices = topk_gallery(x[some], self.features, k)
                similarity[some], index[some] = values.cpu().numpy(), indices.cpu().numpy()
                advance(len(values))
        return self.latlon[index], similarity

    def probability(self, embeddings: torch.Tensor, similarity: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax, over the whole gallery, of what `place` returned for these photos: (n, k)."""
        x = self._in_chunks(self.model.image_encoder, embeddings, _PLACES_AT_ONCE, None)
        scale = self.model.logit_scale.detach().exp()
        total = [
            (scale * some @ self.features.T).logsumexp(dim=1) for some in torch.split(x, _PHOTOS_AT_ONCE)
        ]
        logits = scale.cpu() * torch.from_numpy(similarity)
        return (logits - torch.cat(total).cpu()[:, None]).exp().numpy()

    @torch.no_grad()
    def _in_chunks(
        self, encoder: torch.nn.Module, inputs: torch.Tensor, at_once: int, description: str | None
    ) -> torch.Tensor:
        """Unit features of all inputs, (n, D), never holding more than a chunk's activations."""
        device = self.model.logit_scale.device
        # filled in place: joining chunks would hold everything twice
        width = int(self.model.location_encoder.output_dim)  # type: ignore[arg-type]
        features = torch.empty(len(inputs), width, device=device)
        shown = self.progress and description is not None
        with progress_bar(description or "", len(inputs), "places", enabled=shown) as advance:
            for start in range(0, len(inputs), at_once):
                chunk = inputs[start : start + at_once].to(device)
                features[start : start + at_once] = normalize(encoder(chunk), dim=1)
                advance(len(chunk))
        return features


def read_places(source: str) -> LatLon:
    """Read the places to choose from.

    Args:
        source: "upstream" (the official 100,000), an embedding store, a .npy of (M, 2) latitude and longitude
            in degrees, or a .csv with the columns latitude (or LAT, lat) and longitude (or LON, lon, lng).

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds something else.
        UpstreamUnavailable: the official places are asked for and cannot be fetched.
    """
    if source == "upstream":
        places: LatLon = read_gallery().numpy()
        return places
    path = Path(source)
    latlon: LatLon
    if path.is_dir():
        return EmbeddingStore.open(path).latlon
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix == ".npy":
        try:
            latlon = np.load(path, allow_pickle=False).astype(np.float64)
        except ValueError as error:
            raise ValueError(f"{path} is no array of numbers: {error}") from error
    elif path.suffix == ".csv":
        latlon = _read_csv(path)
    else:
        raise ValueError(f"{path}: wanted 'upstream', an embedding store, a .npy or a .csv")
    check_latlon(latlon, str(path))
    return latlon


def _read_csv(path: Path) -> LatLon:
    try:
        table = pyarrow.csv.read_csv(path)
        names = {name.strip().lower(): name for name in table.column_names}
        columns = [
            next(names[alias] for alias in aliases if alias in names)
            for aliases in (("latitude", "lat"), ("longitude", "lon", "lng"))
        ]
        return np.stack([table[name].cast(pa.float64()).to_numpy() for name in columns], axis=1)
    except StopIteration:
        raise ValueError(
            f"{path}: wanted the columns latitude (or lat) and longitude (or lon, lng), "
            f"got {', '.join(table.column_names)}"
        ) from None
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no table of coordinates: {error}") from error
