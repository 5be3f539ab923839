"""Fit a semivariogram model to an empirical semivariogram; GSTools does the fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from semivario_kernels.empirical_variogram import EmpiricalVariogram, Floats
from semivario_kernels.geometry import chord_km
from semivario_kernels.variogram import KINDS, Metric, VariogramModel, import_gstools

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Weights = Literal["cressie", "counts", "equal"]
NESTED = ("exponential", "exponential")  # what kind="nested" stands for

STARTS = (30, 10, 3)  # the length scale starts at the largest lag over these
REWEIGHTINGS = 4
RESOLVABLE_R2 = 0.2  # a weighted R² over a flat model below this means that no range can be told
AT_BOUND = 1.01  # a parameter within 1 % of its bound is at its bound
TOP_SILL = 3  # nugget and partial sill stay below the largest gamma times this
SMALLEST_ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class VariogramFit:
    """A fitted model and how well it fits.

    Attributes:
        model: the fitted model.
        r2: weighted R², 1 − Σw·(gamma−γ)² / Σw·(gamma−flat)², against the best flat model.
        residuals: (K,) gamma − γ(lag) per bin, NaN where the bin is empty.
        resolvable: whether the data tell a range: r2 ≥ 0.2, no length scale or sill at a bound of the search.
        note: why it is not resolvable, else empty.
        empirical: the semivariogram that was fitted.
    """

    model: VariogramModel
    r2: float
    residuals: Floats
    resolvable: bool
    note: str
    empirical: EmpiricalVariogram

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the points and the fitted curve with nugget, sill and range."""
        from semivario_kernels.variogram_plot import plot_variogram

        return plot_variogram(self.empirical, self.model, ax)


def fit_variogram(
    empirical: EmpiricalVariogram,
    kind: str | tuple[str, ...] = "stable",
    *,
    metric: Metric = "arc",
    weights: Weights = "cressie",
    nugget: bool = True,
) -> VariogramFit:
    """Fit a model by weighted least squares.

    Args:
        empirical: the empirical semivariogram; empty bins are left out.
        kind: "stable", "exponential", "gaussian", "spherical" or "matern32"; a tuple of them for a nested
            model; "nested" for two exponential structures.
        metric: "arc" or "chord": the lag that enters the correlation, see `VariogramModel`.
        weights: per squared residual: "cressie", counts/γ_model² by reweighting (Cressie, 1985); "counts"; or
            "equal".
        nugget: False keeps the nugget at 0.

    Returns:
        The best of three starts. Degenerate data do not raise: `resolvable` is False and `note` says why.

    Raises:
        ValueError: an unknown kind, metric or weights, or fewer filled bins than parameters.
        RuntimeError: the optimiser found no solution; the message holds its reason and the data.

    Warns:
        UserWarning: where the fitted model is not a valid covariance on the sphere: with great-circle
            distance, gaussian, matern32 and stable with α > 1 are not (Gneiting, 2013).
    """
    if not isinstance(empirical, EmpiricalVariogram):
        raise ValueError(f"empirical: wanted an EmpiricalVariogram, got {type(empirical).__name__}")
    kinds = NESTED if kind == "nested" else (kind,) if isinstance(kind, str) else tuple(kind)
    for name in kinds:
        if name not in KINDS:
            raise ValueError(f"kind: wanted one of {', '.join(KINDS)}, 'nested' or a tuple, got {name!r}")
    if metric not in ("arc", "chord"):
        raise ValueError(f"metric: wanted 'arc' or 'chord', got {metric!r}")
    if weights not in ("cressie", "counts", "equal"):
        raise ValueError(f"weights: wanted 'cressie', 'counts' or 'equal', got {weights!r}")
    filled = (empirical.counts > 0) & np.isfinite(empirical.gamma)
    lag, gamma = empirical.lag_km[filled], empirical.gamma[filled]
    counts = empirical.counts[filled] / empirical.counts[filled].mean()
    parameters = 2 * len(kinds) + kinds.count("stable") + int(nugget)
    if len(lag) < parameters or lag.max() <= 0:
        raise ValueError(
            f"empirical: a {'+'.join(kinds)} model has {parameters} parameters; wanted as many filled bins "
            f"at lags above 0 km, got {len(lag)} at lags {np.array2string(lag, precision=3)} km"
        )
    largest = float(gamma.max())
    if largest <= 0 or np.ptp(gamma) <= 1e-9 * largest:
        flat = VariogramModel(kinds, max(largest, 0.0), (0.0,) * len(kinds), (float(lag.max()),) * len(kinds))
        residuals = np.where(filled, empirical.gamma - flat.nugget, np.nan)
        return VariogramFit(flat, 0.0, residuals, False, "the semivariogram is flat", empirical)

    x = chord_km(torch.from_numpy(lag)).numpy() if metric == "chord" else lag
    floor = 1e-3 * largest  # keeps the relative error of a bin near γ = 0 finite
    candidates: list[tuple[float, VariogramModel]] = []
    failures: list[str] = []
    for start in STARTS:
        try:
            for model in _reweighted(kinds, metric, weights, nugget, x, lag, gamma, counts, start):
                w = _weights_of(weights, counts, model(lag), floor)
            candidates.append((_cost(weights, counts, gamma, model(lag), floor), model))
        except (RuntimeError, ValueError) as error:  # curve_fit raises both
            failures.append(str(error))
    if not candidates:
        raise RuntimeError(
            f"no {'+'.join(kinds)} model could be fitted: {'; '.join(sorted(set(failures)))}; "
            f"lags {lag} km, gamma {gamma}, counts {empirical.counts[filled]}"
        )
    model = min(candidates, key=lambda candidate: candidate[0])[1]
    w = _weights_of(weights, counts, model(lag), floor)
    flat_gamma = np.average(gamma, weights=w)
    r2 = float(1 - (w * (gamma - model(lag)) ** 2).sum() / (w * (gamma - flat_gamma) ** 2).sum())
    lower, upper = _len_scale_bounds(x)
    notes = [
        f"{what} at its {side} bound"
        for _, psill, len_scale_km, _ in model.structures
        for what, value, side, bound in (
            (f"length scale {len_scale_km:.3g} km", len_scale_km, "lower", lower),
            (f"length scale {len_scale_km:.3g} km", len_scale_km, "upper", upper),
            (f"partial sill {psill:.3g}", psill, "upper", TOP_SILL * largest),
        )
        if bound / AT_BOUND <= value <= bound * AT_BOUND
    ]
    if r2 < RESOLVABLE_R2:
        notes.insert(0, f"R² {r2:.2f} over a flat model is below {RESOLVABLE_R2}")
    if not notes:
        _warn_if_invalid_on_sphere(model)
    fitted = np.where(filled, model(np.where(filled, empirical.lag_km, 0.0)), np.nan)
    return VariogramFit(model, r2, empirical.gamma - fitted, not notes, "; ".join(notes), empirical)


def _reweighted(
    kinds: tuple[str, ...],
    metric: Metric,
    weights: Weights,
    nugget: bool,
    x: Floats,
    lag: Floats,
    gamma: Floats,
    counts: Floats,
    start: int,
) -> Iterator[VariogramModel]:
    """Yield the models of the successive passes from one start."""
    largest = float(gamma.max())
    spread = [3.0 ** (k - (len(kinds) - 1) / 2) for k in range(len(kinds))]  # nested structures start apart
    lower, upper = _len_scale_bounds(x)
    model = VariogramModel(
        kinds,
        nugget=max(float(gamma.min()) / 2, 0.0) if nugget else 0.0,
        psill=tuple((largest - float(gamma.min()) / 2) / len(kinds) for _ in kinds),
        len_scale_km=tuple(float(np.clip(x.max() / start * s, 2 * lower, upper / 2)) for s in spread),
        metric=metric,
    )
    for _ in range(REWEIGHTINGS if weights == "cressie" else 1):
        w = _weights_of(weights, counts, model(lag), 1e-3 * largest)
        model = _gstools_fit(model, nugget, x, gamma, w)
        yield model


@contextmanager
def _small_alpha_is_fine() -> Iterator[None]:
    """Keep GSTools quiet on alpha < 0.3: random fields of such a model are hard to make, its γ is not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*'alpha' is < 0.3")
        yield


@_small_alpha_is_fine()
def _gstools_fit(model: VariogramModel, nugget: bool, x: Floats, gamma: Floats, w: Floats) -> VariogramModel:
    """One weighted least-squares pass from `model`, in the metric's own lag."""
    import_gstools()
    start = VariogramModel.from_dict(
        {**model.to_dict(), "metric": "arc"}
    )  # γ as a function of the lag itself
    gs_model = start.to_gstools()
    top = TOP_SILL * float(gamma.max())
    lower, upper = _len_scale_bounds(x)
    nested = len(start.structures) > 1
    guess: dict[str, Any] = {}
    bounds: dict[str, list[float]] = {}
    for k, (kind, psill, len_scale, alpha) in enumerate(start.structures):
        suffix = f"_{k}" if nested else ""
        guess |= {f"var{suffix}": psill, f"len_scale{suffix}": len_scale}
        bounds |= {f"var{suffix}": [0.0, top], f"len_scale{suffix}": [lower, upper]}
        if kind == "stable":
            guess[f"alpha{suffix}"] = max(alpha, 2 * SMALLEST_ALPHA)
            bounds[f"alpha{suffix}"] = [SMALLEST_ALPHA, 2.0]
    select: dict[str, Any] = {} if nugget else {"nugget": 0.0}
    for k, (kind, *_) in enumerate(start.structures):
        if kind == "matern32":
            select["nu_" + str(k) if nested else "nu"] = 1.5  # GSTools would fit it
    if nugget:
        guess["nugget"] = start.nugget
        bounds["nugget"] = [0.0, top]
    gs_model.set_arg_bounds(check_args=False, **bounds)
    gs_model.fit_variogram(
        x,
        gamma,
        init_guess=guess,
        weights=np.sqrt(w),  # GSTools' weights multiply the residual, ours its square
        loss="linear",
        max_eval=2000,
        curve_fit_kwargs={"x_scale": "jac"},
        **select,
    )
    fitted = VariogramModel.from_gstools(gs_model)
    return VariogramModel.from_dict({**fitted.to_dict(), "metric": model.metric})


def _len_scale_bounds(x: Floats) -> tuple[float, float]:
    return float(x[x > 0].min()) / 100, 10 * float(x.max())


def _weights_of(weights: Weights, counts: Floats, fitted: Floats, floor: float) -> Floats:
    if weights == "equal":
        return np.ones_like(counts)
    return counts / np.maximum(fitted, floor) ** 2 if weights == "cressie" else counts


def _cost(weights: Weights, counts: Floats, gamma: Floats, fitted: Floats, floor: float) -> float:
    """Cressie's criterion Σ N·(gamma/γ − 1)², or the weighted sum of squares: comparable between starts."""
    cost = float((_weights_of(weights, counts, fitted, floor) * (gamma - fitted) ** 2).sum())
    return cost if math.isfinite(cost) else math.inf


def _warn_if_invalid_on_sphere(model: VariogramModel) -> None:
    if model.metric == "chord":
        return
    for kind, _, _, alpha in model.structures:
        if kind in ("gaussian", "matern32") or (kind == "stable" and alpha > 1):
            shape = f" with alpha {alpha:.2f}" if kind == "stable" else ""
            warnings.warn(
                f"{kind}{shape} is no valid covariance in great-circle distance; fit with metric='chord'",
                stacklevel=3,
            )
