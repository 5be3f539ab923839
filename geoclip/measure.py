"""The semivariogram of an embedding store: measured straight from its shards, fitted, written and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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
from semivario_kernels.embedding_files import read_embeddings

# the measurement, the plot, and what goes on after an interruption
_BESIDE = (".npz", ".png", ".checkpoint")


def measure_variogram(
    store: EmbeddingStore,
    out: Path,
    *,
    edges_km: NDArray[np.float64],
    places: int | None = None,
    max_pairs: int | None = None,
    max_lag_km: float | None = None,
    kind: str = "stable",
    metric: Literal["arc", "chord"] = "chord",
    seed: int = 0,
    progress: bool = True,
) -> VariogramFit:
    """Measure pairs of a store's photos, fit a model, and write both with a plot.

    The embeddings stay on disk. A measurement that was interrupted goes on where it was.

    Args:
        store: the training data: a held-out photo here would leak into the loss.
        out: JSON file of the model; the measurement (.npz) and the plot (.png) go beside it.
        edges_km: (K+1,) rising bin edges in km.
        places: measure a random sample of so many photos; None or more than there are takes all.
        max_pairs: measure about so many pairs, see `binned_semivariance`; None takes all.
        max_lag_km: leave out pairs beyond, km.
        kind: model fitted, see `fit_variogram`.
        metric: distance that the model reads; every kind is a covariance on the sphere in "chord" distance.
        seed: of the samples.
        progress: whether to show a bar.

    Returns:
        The fit, which holds what was measured.

    Raises:
        ValueError: a store of test photos, `places` below 2, an `out` in the place of the files beside it, or
            as `binned_semivariance` and `fit_variogram` say.
        RuntimeError: the fit found no solution.
        OSError: the files cannot be written.
    """
    if store.info.get("split") == "test":
        raise ValueError(
            f"{store.path} holds the test split: a semivariogram is measured on training data only, as a "
            "loss that knows the test photos makes the test worthless"
        )
    if out.suffix in _BESIDE:
        raise ValueError(
            f"out: {out}: {', '.join(_BESIDE)} of this name are files of their own; wanted another suffix"
        )
    if places is not None and places < 2:
        raise ValueError(f"places: wanted at least 2, got {places}")
    out.parent.mkdir(parents=True, exist_ok=True)  # before the long work
    latlon = store.latlon
    if places is not None and places < len(store):
        rows = np.sort(np.random.default_rng(seed).permutation(len(store))[:places])
        embeddings, latlon = store.read(rows), latlon[rows]
    else:
        embeddings = read_embeddings(store.path, scratch=out.parent)
    empirical = binned_semivariance(
        embeddings,
        latlon,
        edges_km=edges_km,
        max_pairs=max_pairs,
        max_lag_km=max_lag_km,
        seed=seed,
        progress=progress,
        checkpoint=out.with_suffix(".checkpoint"),
    )
    fit = fit_variogram(empirical, kind, metric=metric)
    empirical.save(out.with_suffix(".npz"))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    fit.plot(figure.add_subplot())
    write_atomically(out.with_suffix(".png"), lambda file: figure.savefig(file, format="png", dpi=150))
    fit.save(out)  # last: where it is, the others are
    return fit


def load_variogram(
    out: Path, kind: str = "stable", metric: Literal["arc", "chord"] = "chord"
) -> VariogramFit:
    """Fit again what `measure_variogram` measured, which takes a moment.

    Args:
        out: the JSON file that it wrote; the measurement (.npz) lies beside it.
        kind: as there.
        metric: as there.

    Raises:
        ValueError: the measurement is damaged, or as `fit_variogram` says.
        OSError: it cannot be read.
    """
    return fit_variogram(EmpiricalVariogram.load(out.with_suffix(".npz")), kind, metric=metric)
