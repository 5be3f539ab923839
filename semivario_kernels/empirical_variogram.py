"""The empirical semivariogram: what `binned_semivariance` measured, per distance bin."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semivario_kernels.checks import check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EmpiricalVariogram:
    """Semivariance per bin b_k ≤ h < b_{k+1} of great-circle distance; an empty bin is NaN, never 0.

    Attributes:
        edges_km: (K+1,) bin edges in km, rising.
        lag_km: (K,) mean distance of the pairs in the bin, km.
        counts: (K,) int64 number of pairs.
        gamma: (K,) semivariance; for the Matheron estimator the mean dissimilarity d = 1 − cos.
        std: (K,) standard deviation of d over the pairs.
        stderr: (K,) std/√counts. Pairs share places, so this is a lower bound of the error.
        duplicates: pairs of places at distance 0.
        sampled: whether only a sample of the pairs was measured.
        seed: seed of the sample, None without one.
        estimator: "matheron", "cressie-hawkins" or "dowd".
    """

    edges_km: Floats
    lag_km: Floats
    counts: npt.NDArray[np.int64]
    gamma: Floats
    std: Floats
    stderr: Floats
    duplicates: int
    sampled: bool = False
    seed: int | None = None
    estimator: str = "matheron"

    def merge(self, other: EmpiricalVariogram) -> EmpiricalVariogram:
        """Return the semivariogram of both sets of pairs; Matheron with equal edges only, else ValueError."""
        if self.estimator != "matheron" or other.estimator != "matheron":
            raise ValueError(
                f"other: only matheron estimates keep sums, got {self.estimator} and {other.estimator}"
            )
        if not np.array_equal(self.edges_km, other.edges_km):
            raise ValueError(f"other: wanted the edges {self.edges_km}, got {other.edges_km}")
        sums = [a + b for a, b in zip(self._sums(), other._sums(), strict=True)]
        return from_sums(
            self.edges_km,
            self.counts + other.counts,
            sum_h=sums[0],
            sum_d=sums[1],
            sum_d2=sums[2],
            duplicates=self.duplicates + other.duplicates,
            sampled=self.sampled or other.sampled,
        )

    def _sums(self) -> tuple[Floats, Floats, Floats]:
        """Σh, Σd and Σd² per bin, 0 where it is empty."""
        per_pair = (self.lag_km, self.gamma, self.std**2 + self.gamma**2)
        sum_h, sum_d, sum_d2 = (np.where(self.counts > 0, self.counts * value, 0.0) for value in per_pair)
        return sum_h, sum_d, sum_d2

    def save(self, path: str | Path) -> None:
        """Write everything to a .npz file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["seed"] = -1 if self.seed is None else self.seed
        with Path(path).open("wb") as file:  # given a name, NumPy would append .npz
            np.savez(file, **values)

    @classmethod
    def load(cls, path: str | Path) -> EmpiricalVariogram:
        """Read what `save` wrote; ValueError names the file where it is not one."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                values: dict[str, Any] = {field.name: archive[field.name] for field in fields(cls)}
        except (KeyError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not an empirical semivariogram: {error}") from error
        seed = int(values["seed"])
        values.update(
            duplicates=int(values["duplicates"]),
            sampled=bool(values["sampled"]),
            seed=None if seed < 0 else seed,
            estimator=str(values["estimator"]),
        )
        return cls(**values)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the points, sized by their number of pairs, on a logarithmic lag axis."""
        from semivario_kernels.variogram_plot import plot_variogram

        return plot_variogram(self, None, ax)


def from_sums(
    edges_km: Floats,
    counts: npt.NDArray[np.int64],
    *,
    sum_h: Floats,
    sum_d: Floats,
    sum_d2: Floats,
    duplicates: int,
    sampled: bool,
    seed: int | None = None,
    gamma: Floats | None = None,
    estimator: str = "matheron",
) -> EmpiricalVariogram:
    """Make the semivariogram from per-bin sums of h, d and d²; `gamma` replaces Matheron's mean."""
    pairs = np.where(counts > 0, counts, np.nan)
    mean = sum_d / pairs
    std = np.sqrt(np.maximum(sum_d2 / pairs - mean**2, 0))
    return EmpiricalVariogram(
        edges_km=edges_km,
        lag_km=sum_h / pairs,
        counts=counts,
        gamma=mean if gamma is None else gamma,
        std=std,
        stderr=std / np.sqrt(pairs),
        duplicates=duplicates,
        sampled=sampled,
        seed=seed,
        estimator=estimator,
    )


def log_edges_km(first_km: float, last_km: float, bins: int) -> Floats:
    """Bin edges 0, first_km, …, last_km: one bin from 0, and `bins` − 1 of equal ratio above it.

    Returns:
        (bins+1,) float64 km.

    Raises:
        ValueError: not 0 < first_km < last_km, or fewer than 2 bins.
    """
    check_number("first_km", first_km, low=0, open_low=True)
    check_number("last_km", last_km, low=first_km, open_low=True)
    if bins < 2:
        raise ValueError(f"bins: wanted at least 2, got {bins}")
    edges = np.concatenate([[0.0], np.geomspace(first_km, last_km, bins)])
    edges[1], edges[-1] = first_km, last_km
    return edges


def even_edges_km(last_km: float, bins: int) -> Floats:
    """Bin edges 0 … last_km of equal width: (bins+1,) float64 km; ValueError for bad arguments."""
    check_number("last_km", last_km, low=0, open_low=True)
    if bins < 1:
        raise ValueError(f"bins: wanted at least 1, got {bins}")
    return np.linspace(0.0, last_km, bins + 1)
