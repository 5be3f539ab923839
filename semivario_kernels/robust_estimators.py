"""Robust estimators of the semivariance: of Cressie and Hawkins (1980), and of Dowd (1984).

Both are stated for the squared difference of two Gaussian values. For vectors the squared difference is a
sum over dimensions that are not independent; it scatters like χ²_ν/ν around its mean, with ν = (tr C)²/tr C²
effective dimensions (Satterthwaite, 1946), C the covariance of the vectors. ν = 1 gives textbook constants.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels.backends.binned_walk import Places
from semivario_kernels.binned_sums import BinnedSums

Floats = npt.NDArray[np.float64]

FEWEST_PAIRS = 30
ROWS_AT_ONCE = 4096


def robust_gamma(estimator: str, totals: BinnedSums, places: list[Places]) -> Floats:
    """Semivariance per bin, (K,); NaN, and a warning that names the bins, where there are too few pairs."""
    nu = effective_dimensions(places)
    counts = totals.sums[:, :, 1:-1, 0].sum(dim=(0, 1))
    few = counts < FEWEST_PAIRS
    pairs = torch.where(few, torch.nan, counts)
    if estimator == "cressie-hawkins":
        assert totals.quarter_sums is not None
        # E[(χ²_ν/ν)^¼] = (2/ν)^¼ · Γ(ν/2 + ¼) / Γ(ν/2)
        expected = (2 / nu) ** 0.25 * math.exp(math.lgamma(nu / 2 + 0.25) - math.lgamma(nu / 2))
        gamma = (totals.quarter_sums[1:-1] / pairs) ** 4 / expected**4
    else:
        assert totals.histogram is not None
        gamma = _histogram_median(totals.histogram[1:-1], pairs) * nu / chi2_median(nu)
    if bool((few & (counts > 0)).any()):
        bins = (few & (counts > 0)).nonzero()[:, 0].tolist()
        warnings.warn(
            f"{estimator} wants at least {FEWEST_PAIRS} pairs a bin; bins {bins} hold fewer and are NaN",
            stacklevel=3,
        )
    values: Floats = gamma.numpy()
    return values


def effective_dimensions(places: list[Places]) -> float:
    """ν of the unit vectors of all the places."""
    dimensions = places[0].embeddings.shape[1]
    total = torch.zeros(dimensions, dtype=torch.float64, device="cpu")
    products = torch.zeros(dimensions, dimensions, dtype=torch.float64, device="cpu")
    count = 0
    for side in places:
        for index, inverse in zip(
            torch.split(side.index, ROWS_AT_ONCE), torch.split(side.inverse_norm, ROWS_AT_ONCE), strict=True
        ):
            unit = side.embeddings[index].double() * inverse[:, None].double()
            total += unit.sum(dim=0).cpu()
            products += (unit.T @ unit).cpu()
            count += len(unit)
    covariance = products / count - torch.outer(total, total) / count**2
    trace_of_square = float(covariance.square().sum())
    return float(covariance.trace()) ** 2 / trace_of_square if trace_of_square > 1e-24 else float(dimensions)


def chi2_median(nu: float) -> float:
    """Median of the χ² distribution with ν degrees of freedom, by bisection of its distribution function."""
    low, high = 0.0, 4 * nu + 4
    half_nu = torch.tensor(nu / 2, dtype=torch.float64, device="cpu")
    for _ in range(100):
        middle = (low + high) / 2
        below = torch.special.gammainc(half_nu, half_nu.new_tensor(middle / 2)) < 0.5
        low, high = (middle, high) if below else (low, middle)
    return high


def _histogram_median(histogram: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Median of d in [0, 2] per bin, linear inside its cell."""
    cells = histogram.shape[1]
    cumulative = histogram.cumsum(dim=1).double()
    half = (pairs / 2).nan_to_num(0.0)[:, None]
    cell = torch.searchsorted(cumulative, half).clamp(max=cells - 1)
    inside = histogram.gather(1, cell).double()
    before = cumulative.gather(1, cell) - inside
    median = (cell + (half - before) / inside.clamp(min=1)) * (2 / cells)
    return torch.where(pairs.isnan(), torch.nan, median[:, 0])
