"""The semivariogram of an embedding store: measured on random photos, fitted, written and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geoclip.embedding_store import EmbeddingStore
from semivario_kernels import (
    EmpiricalVariogram,
    VariogramFit,
    binned_semivariance,
    fit_variogram,
)
from semivario_kernels.atomic import write_atomically


def measure_variogram(
    store: EmbeddingStore,
    out: Path,
    *,
    places: int = 6000,
    edges_km: NDArray[np.float64],
    kind: str = "stable",
    seed: int = 0,
    progress: bool = True,
) -> VariogramFit:
    """Measure all pairs of a random sample of photos, fit a model, and write both with a plot.

    Args:
        store: the training data: a held-out photo here would leak into the loss.
        out: JSON file of the model; the measurement (.npz) and the plot (.png) go beside it.
        places: photos in the sample; all of them where the store has fewer.
        edges_km: distance bins.
        kind: model fitted, see `fit_variogram`.
        seed: of the sample.
        progress: whether to show a bar.

    Returns:
        The fit, which holds what was measured.

    Raises:
        ValueError: `places` below 2, or as `binned_semivariance` and `fit_variogram` say.
        OSError: the files cannot be written.
    """
    if places < 2:
        raise ValueError(f"places: wanted at least 2, got {places}")
    out.parent.mkdir(parents=True, exist_ok=True)  # before the long work
    rows = np.random.default_rng(seed).permutation(len(store))[:places]
    rows.sort()  # a memory-mapped store reads faster in order
    empirical = binned_semivariance(
        store.read(rows), store.latlon[rows], edges_km=edges_km, seed=seed, progress=progress
    )
    fit = fit_variogram(empirical, kind)
    empirical.save(out.with_suffix(".npz"))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    fit.plot(figure.add_subplot())
    write_atomically(out.with_suffix(".png"), lambda file: figure.savefig(file, format="png", dpi=150))
    fit.model.save(out)  # last: where it is, the others are
    return fit


def load_variogram(out: Path, kind: str = "stable") -> VariogramFit:
    """Fit again what `measure_variogram` measured, which takes a moment."""
    return fit_variogram(EmpiricalVariogram.load(out.with_suffix(".npz")), kind)
