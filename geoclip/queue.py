"""Recent places and their photos' embeddings, kept as extra negatives, and position noise in metres.

GeoCLIP (Vivanco Cepeda et al., 2023) keeps a queue of the latest training coordinates and adds fresh noise to
them at every step. Its code divides metres by 111,320 for longitude too, so that its noise shrinks towards
the poles; here the noise is drawn on the ground, in the local east and north directions.
"""

from __future__ import annotations

import torch

from geoclip.coordinates import wrap_longitude
from geoclip.fixed_precision import FixedPrecisionBuffers
from semivario_kernels import EARTH_RADIUS_KM

NO_ROW = -1


def jitter(latlon: torch.Tensor, metres: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Move every place by Gaussian noise on the ground, alike in all directions and at all latitudes.

    Args:
        latlon: (n, 2) latitude and longitude in degrees.
        metres: standard deviation of the displacement to the east, and of that to the north.
        generator: a CPU generator; the same one gives the same noise on every device.

    Returns:
        (n, 2) degrees in the dtype and on the device of `latlon`, longitudes within ±180.

    Raises:
        ValueError: `latlon` is not (n, 2), or `metres` is negative or not finite.
    """
    if latlon.ndim != 2 or latlon.shape[1] != 2:
        raise ValueError(f"latlon: wanted shape (n, 2), got {tuple(latlon.shape)}")
    if not 0 <= metres < float("inf"):
        raise ValueError(f"metres: wanted a number of at least 0, got {metres}")
    if metres == 0:
        return torch.stack((latlon[:, 0], wrap_longitude(latlon[:, 1])), dim=1)
    noise = torch.randn(latlon.shape, dtype=torch.float64, generator=generator).to(latlon.device)
    noise *= metres / 1000 / EARTH_RADIUS_KM  # radians of great-circle arc, to the north and to the east
    latitude, longitude = torch.deg2rad(latlon.double()).unbind(dim=1)
    sin_lat, cos_lat, sin_lon, cos_lon = latitude.sin(), latitude.cos(), longitude.sin(), longitude.cos()
    up = torch.stack((cos_lat * cos_lon, cos_lat * sin_lon, sin_lat), dim=1)
    north = torch.stack((-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat), dim=1)
    east = torch.stack((-sin_lon, cos_lon, torch.zeros_like(sin_lon)), dim=1)
    arc = noise.norm(dim=1, keepdim=True)
    tangent = noise[:, :1] * north + noise[:, 1:] * east
    # sinc(arc/π) = sin(arc)/arc, also where the arc is 0
    moved = arc.cos() * up + torch.sinc(arc / torch.pi) * tangent
    x, y, z = moved.unbind(dim=1)
    # atan2 keeps its precision at the poles, where the arc sine loses half of its digits
    degrees = torch.rad2deg(torch.stack((torch.atan2(z, torch.hypot(x, y)), torch.atan2(y, x)), dim=1))
    return degrees.to(latlon.dtype)


class PlaceQueue(FixedPrecisionBuffers):
    """The last `size` places with the frozen embeddings of their photos: a ring that checkpoints carry.

    Args:
        size: places kept; 0 keeps none.
        dim: dimension E of the embeddings.

    Raises:
        ValueError: a negative `size` or `dim` below 1.
    """

    latlon: torch.Tensor
    embeddings: torch.Tensor
    rows: torch.Tensor
    pointer: torch.Tensor
    count: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 0 or dim < 1:
            raise ValueError(f"size, dim: wanted size ≥ 0 and dim ≥ 1, got {size} and {dim}")
        self.size = size
        self.register_buffer("latlon", torch.zeros(size, 2, dtype=torch.float64))
        # stored embeddings are float16 already, so this loses nothing
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=torch.float16))
        self.register_buffer("rows", torch.full((size,), NO_ROW))
        # tensors rather than numbers, so that a checkpoint holds them
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return int(self.count)

    @property
    def full(self) -> bool:
        """Whether every slot holds a place."""
        return len(self) == self.size

    @torch.no_grad()
    def enqueue(self, latlon: torch.Tensor, embeddings: torch.Tensor, rows: torch.Tensor) -> None:
        """Take in a batch of any size; the oldest places leave, and of a batch above `size` the last stay.

        Args:
            latlon: (n, 2) latitude and longitude in degrees, without noise.
            embeddings: (n, E) frozen embeddings of the photos taken there.
            rows: (n,) int64 row of each photo in its data set.

        Raises:
            ValueError: different lengths.
        """
        n = len(latlon)
        if not n == len(embeddings) == len(rows):
            raise ValueError(
                f"latlon, embeddings, rows: wanted one length, got {n}, {len(embeddings)} and {len(rows)}"
            )
        kept = min(n, self.size)
        if kept == 0:
            return
        slots = (self.pointer + torch.arange(kept, device=self.latlon.device)) % self.size
        self.latlon[slots] = latlon[n - kept :].to(self.latlon)
        self.embeddings[slots] = embeddings[n - kept :].to(self.embeddings)
        self.rows[slots] = rows[n - kept :].to(self.rows)
        self.pointer.copy_((self.pointer + kept) % self.size)
        self.count.copy_((self.count + kept).clamp(max=self.size))

    def entries(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return copies of what is filled: latlon (m, 2) degrees, embeddings (m, E), rows (m,), m ≤ size."""
        filled = len(self)
        return self.latlon[:filled].clone(), self.embeddings[:filled].clone(), self.rows[:filled].clone()


def same_photo(rows: torch.Tensor, gallery_rows: torch.Tensor, first: int = 0) -> torch.Tensor | None:
    """Gallery indices that show the very photo of a query elsewhere than in its own place.

    Args:
        rows: (n,) row of each query's photo, all different; the positive of query i is gallery entry first +
            i.
        gallery_rows: (m,) row of each gallery entry, NO_ROW where it shows no photo.
        first: gallery index of the first query's positive.

    Returns:
        (n, k) int64 padded with −1, as the loss's `exclude` wants it, or None where there is none.
    """
    n = len(rows)
    ordered, query = rows.sort()
    place = torch.searchsorted(ordered, gallery_rows).clamp(max=n - 1)
    shows = ordered[place] == gallery_rows
    shows[first : first + n] = False
    again = shows.nonzero().flatten()
    if len(again) == 0:
        return None
    owner, by_owner = query[place[again]].sort(stable=True)
    times = torch.bincount(owner, minlength=n)
    column = torch.arange(len(owner), device=rows.device) - (times.cumsum(0) - times)[owner]
    exclude = torch.full((n, int(times.max())), -1, device=rows.device)
    exclude[owner, column] = again[by_owner]
    return exclude
