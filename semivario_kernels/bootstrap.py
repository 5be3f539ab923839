"""The Bayesian bootstrap over spatial blocks: bands of a semivariogram, intervals of a fit's parameters.

Every block of neighbouring places gets a random weight of mean 1 (Rubin, 1981). A pair between two blocks
counts by the product of their weights, a pair inside a block by the block's weight alone: it is drawn when
its block is, and to first order this is the delete-a-block jackknife. The square instead would double the
deviations at short lags, whose pairs lie nearly all inside one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semivario_kernels.checks import check_number
from semivario_kernels.empirical_variogram import EmpiricalVariogram, Floats
from semivario_kernels.spatial_blocks import FEWEST_BLOCKS, BlockSums
from semivario_kernels.variogram import VariogramModel

if TYPE_CHECKING:
    from semivario_kernels.fit import VariogramFit

FEWEST_REFITS = 0.5  # share of the draws that must have a fit


@dataclass(frozen=True, eq=False)
class VariogramDraws:
    """Semivariograms of places drawn anew.

    Attributes:
        gamma: (draws, K) semivariance; NaN where a bin is empty, or where all of its pairs have an end in one
            block, so that nothing can be said about its spread.
        seed: seed of the draws.
    """

    gamma: Floats
    seed: int

    def band(self, level: float = 0.95) -> Floats:
        """Pointwise percentile band, (2, K): its rows hold the share `level` of the draws between them.

        Raises:
            ValueError: a level outside (0, 1].
        """
        return _percentiles(self.gamma, level)


@dataclass(frozen=True, eq=False)
class FitDraws:
    """Models fitted to drawn semivariograms.

    Attributes:
        variogram: the drawn semivariograms, of which each was fitted.
        models: the fitted models.
        failed: how many draws had no fit; they have no model.
    """

    variogram: VariogramDraws
    models: tuple[VariogramModel, ...]
    failed: int

    def interval(self, level: float = 0.95) -> dict[str, Floats]:
        """Percentile intervals of the parameters, which hold the share `level` of the models.

        Returns:
            By name, "nugget", "sill" and "range_km" (95 % of the way to the sill, possibly infinite) as
            (2,), and "psill", "len_scale_km" and "alpha" as (2,), or (2, structures) for a nested model.

        Raises:
            ValueError: a level outside (0, 1].
        """
        values = {
            "nugget": [model.nugget for model in self.models],
            "sill": [model.sill for model in self.models],
            "range_km": [model.range_km() for model in self.models],
            "psill": [model.psill for model in self.models],
            "len_scale_km": [model.len_scale_km for model in self.models],
            "alpha": [model.alpha for model in self.models],
        }
        return {name: _percentiles(np.array(column), level) for name, column in values.items()}

    def band(self, h_km: Floats, level: float = 0.95) -> Floats:
        """Pointwise percentile band of the fitted γ.

        Args:
            h_km: (n,) great-circle distances.
            level: share of the models between its rows.

        Returns:
            (2, n).

        Raises:
            ValueError: a level outside (0, 1], or a negative distance.
        """
        return _percentiles(np.stack([model(h_km) for model in self.models]), level)


def bootstrap_variogram(empirical: EmpiricalVariogram, draws: int = 200, *, seed: int = 0) -> VariogramDraws:
    """Draw semivariograms by weighing the spatial blocks of places at random.

    Blocks stand for independent looks at the field: where γ still rises at the size of a block, bands are too
    narrow.

    Args:
        empirical: a Matheron estimate that holds its `blocks`.
        draws: how many, at least 2.
        seed: seed of the weights.

    Raises:
        ValueError: no blocks, fewer than 8 of them, another estimator than Matheron's, or a bad number.
    """
    if not isinstance(empirical, EmpiricalVariogram):
        raise ValueError(f"empirical: wanted an EmpiricalVariogram, got {type(empirical).__name__}")
    if empirical.estimator != "matheron":
        raise ValueError(
            f"empirical: wanted a matheron estimate, whose sums add up, got {empirical.estimator}"
        )
    if empirical.blocks is None or len(empirical.blocks) < FEWEST_BLOCKS:
        held = 0 if empirical.blocks is None else len(empirical.blocks)
        raise ValueError(
            f"empirical: wanted the sums between at least {FEWEST_BLOCKS} spatial blocks, got {held}; "
            "few places have none, and a merged semivariogram does not keep them"
        )
    check_number("draws", draws, low=2)
    weights = np.random.default_rng(seed).exponential(size=(int(draws), len(empirical.blocks)))
    weights /= weights.mean(axis=1, keepdims=True)
    gamma = weighted_gamma(empirical.blocks, weights)
    gamma[:, np.isnan(empirical.blocks.jackknife_stderr())] = np.nan
    return VariogramDraws(gamma, seed)


def weighted_gamma(blocks: BlockSums, weights: Floats) -> Floats:
    """Mean d per bin with the blocks' pairs weighed: (draws, G) weights of mean 1 give (draws, K).

    γ_k = Σ_gh W_gh·S_ghk / Σ_gh W_gh·C_ghk with W_gg = w_g and W_gh = w_g·w_h; NaN for an empty bin.
    """
    size, bins = len(blocks), blocks.counts.shape[2]
    products = weights[:, :, None] * weights[:, None, :]
    products[:, range(size), range(size)] = weights
    flat = products.reshape(len(weights), -1)
    sums = flat @ blocks.sums.reshape(-1, bins)
    counts = flat @ blocks.counts.reshape(-1, bins).astype(np.float64)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def bootstrap_fit(fit: VariogramFit, draws: int = 200, *, seed: int = 0) -> FitDraws:
    """Fit each of the drawn semivariograms, from the fit and with its weights.

    A bin whose spread cannot be told keeps its measured value in every draw.

    Args:
        fit: what `fit_variogram` returned.
        draws: how many, at least 2.
        seed: seed of the draws.

    Raises:
        ValueError: as `bootstrap_variogram`, or a fit that is not resolvable: its parameters mean nothing.
        RuntimeError: more than half of the draws could not be fitted.
    """
    if not fit.resolvable:
        raise ValueError(f"fit: wanted a resolvable one, got one with the note: {fit.note}")
    variogram = bootstrap_variogram(fit.empirical, draws, seed=seed)
    models: list[VariogramModel] = []
    failures: list[str] = []
    for gamma in variogram.gamma:
        try:
            models.append(fit.refit(np.where(np.isnan(gamma), fit.empirical.gamma, gamma)))
        except (RuntimeError, ValueError) as error:  # curve_fit raises both
            failures.append(str(error))
    if len(models) < FEWEST_REFITS * len(variogram.gamma):
        raise RuntimeError(
            f"{len(failures)} of {draws} draws could not be fitted: {'; '.join(sorted(set(failures)))}"
        )
    return FitDraws(variogram, tuple(models), len(failures))


def _percentiles(values: Floats, level: float) -> Floats:
    check_number("level", level, low=0, high=1, open_low=True)
    tail = (1 - level) / 2
    # these two methods also hold for an infinite range, between which no mean can be taken
    low: Floats = np.quantile(values, tail, axis=0, method="lower")
    high: Floats = np.quantile(values, 1 - tail, axis=0, method="higher")
    return np.stack([low, high])
