"""The empirical semivariogram: what `binned_semivariance` measured, per distance bin."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semivario_kernels.atomic import write_atomically
from semivario_kernels.spatial_blocks import BlockSums

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from semivario_kernels.binned_run import RunState
    from semivario_kernels.bootstrap import VariogramDraws

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
        stderr: (K,) standard error of the mean d, by leaving out one spatial block of places after the
            other, at least std/√counts; with fewer than 8 blocks, and after `merge`, only that lower bound,
            since pairs share places.
        duplicates: pairs of places at distance 0, of those measured.
        sampled: whether only a sample of the pairs was measured.
        seed: seed of the sample, None without one.
        estimator: "matheron", "cressie-hawkins" or "dowd".
        fraction: (K,) share of each bin's pairs that was measured, 1 where all were; None after `merge`.
        blocks: the sums between spatial blocks of places; None for few places and after `merge`.
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
    fraction: Floats | None = None
    blocks: BlockSums | None = None

    def merge(self, other: EmpiricalVariogram) -> EmpiricalVariogram:
        """Return the semivariogram of both sets of pairs, without `blocks`, `fraction` and `seed`.

        Args:
            other: a Matheron estimate with equal edges, of other pairs.

        Raises:
            ValueError: another estimator, here or there, or other edges.
        """
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
        """Write everything to a .npz file, by the name given; OSError where it cannot be written."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["seed"] = -1 if self.seed is None else self.seed
        blocks = values.pop("blocks")
        if blocks is not None:
            values |= {"block_counts": blocks.counts, "block_sums": blocks.sums}
        if self.fraction is None:
            del values["fraction"]
        # given a name, NumPy would append .npz
        write_atomically(path, lambda file: np.savez(file, **values))

    @classmethod
    def load(cls, path: str | Path) -> EmpiricalVariogram:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is something else; the message names it.
            OSError: it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = [field.name for field in fields(cls) if field.name not in ("fraction", "blocks")]
                values: dict[str, Any] = {name: archive[name] for name in names}
                if "fraction" in archive:
                    values["fraction"] = archive["fraction"]
                if "block_counts" in archive:
                    values["blocks"] = BlockSums(archive["block_counts"], archive["block_sums"])
        except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: not an empirical semivariogram: {error}") from error
        seed = int(values["seed"])
        values.update(
            duplicates=int(values["duplicates"]),
            sampled=bool(values["sampled"]),
            seed=None if seed < 0 else seed,
            estimator=str(values["estimator"]),
        )
        return cls(**values)

    def bootstrap(self, draws: int = 200, *, seed: int = 0) -> VariogramDraws:
        """Draw semivariograms by weighing spatial blocks of places at random (Rubin, 1981), for bands.

        Args:
            draws: how many, at least 2.
            seed: seed of the weights.

        Returns:
            `gamma`, (draws, K), and `band(level=0.95)`, a (2, K) percentile band.

        Raises:
            ValueError: fewer than 8 spatial blocks, as of few places and after `merge`; another estimator
                than Matheron's; too few draws.
        """
        from semivario_kernels.bootstrap import bootstrap_variogram

        return bootstrap_variogram(self, draws, seed=seed)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the points, sized by their number of pairs, on a logarithmic axis of km.

        Args:
            ax: matplotlib Axes to draw into; None makes a new pyplot figure.

        Raises:
            ImportError: matplotlib is not installed; names the extra that brings it.
            ValueError: no bin holds a pair at a distance above 0.
        """
        from semivario_kernels.variogram_plot import plot_variogram

        return plot_variogram(self, None, ax)


def from_run(edges_km: Floats, state: RunState, estimator: str, seed: int | None) -> EmpiricalVariogram:
    """Make the semivariogram from the sums of a run; `gamma` is Matheron's mean, `seed` that of a sample."""
    sums = state.total.sums[:, :, 1:-1].numpy()
    blocks = BlockSums(sums[..., 0].round().astype(np.int64), sums[..., 2].copy())
    _, sum_h, sum_d, sum_d2 = sums.sum(axis=(0, 1)).T
    measured = from_sums(
        edges_km,
        blocks.counts.sum(axis=(0, 1)),
        sum_h=sum_h,
        sum_d=sum_d,
        sum_d2=sum_d2,
        duplicates=int(state.total.duplicates),
        sampled=seed is not None,
    )
    return replace(
        measured,
        stderr=np.fmax(blocks.jackknife_stderr(), measured.stderr),
        seed=seed,
        estimator=estimator,
        fraction=state.fraction,
        blocks=blocks if len(blocks) > 1 else None,
    )


def from_sums(
    edges_km: Floats,
    counts: npt.NDArray[np.int64],
    *,
    sum_h: Floats,
    sum_d: Floats,
    sum_d2: Floats,
    duplicates: int,
    sampled: bool,
) -> EmpiricalVariogram:
    """Make Matheron's semivariogram from per-bin sums of h, d and d²."""
    pairs = np.where(counts > 0, counts, np.nan)
    mean = sum_d / pairs
    std = np.sqrt(np.maximum(sum_d2 / pairs - mean**2, 0))
    return EmpiricalVariogram(
        edges_km=edges_km,
        lag_km=sum_h / pairs,
        counts=counts,
        gamma=mean,
        std=std,
        stderr=std / np.sqrt(pairs),
        duplicates=duplicates,
        sampled=sampled,
    )
