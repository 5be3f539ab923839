"""A small model, a small embedding store, smooth in the place, and the settings of a small run."""

from pathlib import Path

import numpy as np
import torch

from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.image_encoder import ImageEncoder
from geoclip.location_encoder import LocationEncoder
from geoclip.model import GeoCLIP
from semivario_kernels import VariogramModel

from .rendered_photos import random_latlon

VARIOGRAM = VariogramModel("exponential", 0.1, 0.8, 1500.0)


def embeddings_of(latlon: np.ndarray, dim: int = 16) -> np.ndarray:
    """(n, dim) smooth functions of the place, the same in every run."""
    latitude, longitude = np.radians(latlon).T
    place = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )
    rng = np.random.default_rng(7)
    return np.cos(3 * place @ rng.normal(size=(3, dim)) + rng.uniform(0, 6, dim))


def small_model() -> GeoCLIP:
    """From embeddings of 16 numbers to features of 24, the same in every run."""
    torch.manual_seed(3)
    return GeoCLIP(
        from_pretrained=False,
        image_encoder=ImageEncoder(None, embedding_dim=16, output_dim=24),
        location_encoder=LocationEncoder([2.0], from_pretrained=False, width=32, output_dim=24),
        gallery=torch.zeros(1, 2),
    )


def write_store(folder: Path, n: int = 300, seed: int = 0) -> EmbeddingStore:
    latlon = random_latlon(n, seed)
    with EmbeddingWriter(folder, 16, info={"backbone": None}) as writer:
        writer.append(range(n), latlon, embeddings_of(latlon))
    return EmbeddingStore.open(folder)


def write_settings(folder: Path, steps: int = 30) -> Path:
    """A store, a variogram and the YAML of a run over them; returns the YAML's path."""
    write_store(folder / "train")
    VARIOGRAM.save(folder / "variogram.json")
    file = folder / "fit.yaml"
    file.write_text(f"""
out: {folder / "run"}
checkpoint_every: 4
trainer: {{max_steps: {steps}, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}}
data: {{train: {folder / "train"}, batch_size: 24, sampler: neighbours, neighbours: 3}}
model:
  output_dim: 16
  sigma: [1.0, 4.0]
  width: 16
  encoded_size: 8
  queue_size: 50
  policy: explained
  strengths: {{hard: 1, false: 6}}
  variogram: {folder / "variogram.json"}
  learning_rate: 0.01
""")
    return file
