"""Pair sums between spatial blocks of places: what the error of a semivariogram can be read from.

Pairs share places and near places are alike, so the pairs of a bin are far from independent. Blocks of
neighbouring places are nearly so: leaving out one block after the other (Quenouille, 1956; Künsch, 1989, for
dependent data) shows how much the estimate hangs on where one happened to look.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEWEST_BLOCKS = 8  # below, the spread of the left-out estimates says too little


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Per-bin sums over the pairs between blocks g and h; for one set of places only g ≤ h holds any.

    Attributes:
        counts: (G, G, K) int64 number of pairs.
        sums: (G, G, K) float64 Σd.
    """

    counts: npt.NDArray[np.int64]
    sums: Floats

    def __len__(self) -> int:
        return len(self.counts)

    def jackknife_stderr(self) -> Floats:
        """Delete-a-block standard error of the mean d per bin, (K,); NaN where it cannot be told.

        The variance is (G−1)/G·Σ_g (γ_(g) − mean)², with γ_(g) the mean d of the pairs that have no end in
        block g.
        """
        blocks, bins = len(self), self.counts.shape[2]
        if blocks < FEWEST_BLOCKS:
            return np.full(bins, np.nan)
        counts, sums = (_without_each(values) for values in (self.counts, self.sums))
        left_out = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        deviations = left_out - left_out.mean(axis=0)
        error: Floats = np.sqrt((blocks - 1) / blocks * np.square(deviations).sum(axis=0))
        return error


def _without_each(values: npt.NDArray[np.int64] | Floats) -> Floats:
    """Totals of the pairs that have no end in block g, (G, K)."""
    touching = values.sum(axis=0) + values.sum(axis=1) - np.einsum("ggk->gk", values)
    without: Floats = (values.sum(axis=(0, 1)) - touching).astype(np.float64)
    return without
