"""The worlds by name: (a) the demo's field at three levels of noise, (b) the synthetic one and pictures."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.accuracy.rendered import rendered
from benchmarks.accuracy.synthetic import make_photos, world_of
from benchmarks.accuracy.world import World
from geoclip.field import write_field_world
from geoclip.measure import load_variogram, measure_variogram
from semivario_kernels import log_edges_km

# length of the noise on unit embeddings: two photos of one place then have cosine 1 / (1 + noise²)
NOISES = {"field-0.4": 0.4, "field-0.8": 0.8, "field-1.2": 1.2}
SYNTHETIC, RENDERED = "synthetic", "rendered"
WORLDS = (*NOISES, SYNTHETIC, RENDERED)
DEFAULT_WORLD = "field-0.8"
TOWNS, PER_TOWN = 800, 24
HELD_OUT = 6000
VALIDATION = 2000
VARIOGRAM_PLACES = 6000
METRIC: Final = "arc"  # in all worlds, as in the table in benchmarks/results


@lru_cache(maxsize=2)
def make_world(name: str, cache: Path, kind: str = "stable") -> World:
    """Make a world, or read it where an earlier call has.

    Args:
        name: one of `WORLDS`.
        cache: folder to keep it in.
        kind: the semivariogram's, see `fit_variogram`.
    """
    if name in (SYNTHETIC, RENDERED):
        photos = make_photos(TOWNS, PER_TOWN, 0)
        return world_of(photos if name == SYNTHETIC else rendered(photos, 0), kind)
    folder = cache / name
    train, held_out = write_field_world(folder, noise=NOISES[name], held_out=HELD_OUT, progress=False)
    variogram = folder / "variogram.json"
    if not variogram.exists():
        edges_km = log_edges_km(1.0, 20_000.0, 30)
        measure_variogram(
            train, variogram, places=VARIOGRAM_PLACES, edges_km=edges_km, metric=METRIC, progress=False
        )
    # rows are in the gallery's order, which is no random one
    order = np.random.default_rng(0).permutation(len(held_out))
    return World(
        train_latlon=train.latlon,
        train=torch.from_numpy(train.read(np.arange(len(train)))).half(),
        gallery=np.load(folder / "gallery.npy"),
        held_out_latlon=held_out.latlon[order],
        held_out=torch.from_numpy(held_out.read(np.arange(len(held_out)))[order]),
        fit=load_variogram(variogram, kind, METRIC),
        validation=VALIDATION,
    )
