"""Fit a semivariogram model to an empirical semivariogram; GSTools does the fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels.empirical_variogram import EmpiricalVariogram, Floats
from semivario_kernels.geometry import chord_km
from semivario_kernels.variogram import KINDS, Metric, VariogramModel, import_gstools, kind_correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from semivario_kernels.bootstrap import FitDraws

Weights = Literal["cressie", "counts", "equal", "stderr"]
WEIGHTS = ("cressie", "counts", "equal", "stderr")
NESTED = ("exponential", "exponential")  # what kind="nested" stands for

STARTS = (30, 10, 3)  # the length scale starts at the largest lag over these
REWEIGHTINGS = 4
RESOLVABLE_R2 = 0.2  # an adjusted R² over a flat model below this means that no range can be told
AT_BOUND = 1.01  # a parameter within 1 % of its bound is at its bound
LARGEST_D = 2.0  # of 1 − cos, so that no sill lies above
TOP_SILL = 3  # the sill stays below the largest gamma times this
SMALLEST_ALPHA = 0.05
NEGLIGIBLE = 0.01  # a structure with a smaller share of the sill tells nothing
ROUNDING = 1e-6  # of a float32 cosine: a semivariogram that varies less is flat
FLOOR = 1e-3  # of the largest gamma: no bin is trusted to less, which also keeps weights finite near γ = 0


@dataclass(frozen=True, eq=False)
class VariogramFit:
    """A fitted model and how well it fits.

    Attributes:
        model: the fitted model; structures of one kind stand by rising length scale.
        r2: weighted R², 1 − Σw·(gamma−γ)² / Σw·(gamma−flat)², against the best flat model.
        residuals: (K,) gamma − γ(lag) per bin, NaN where the bin is empty.
        resolvable: whether the data tell a range: R², adjusted for the number of parameters, is at least 0.2,
            and no length scale stands at a bound of the search, nor an alpha at the lower or the sill at the
            upper one.
        note: why it is not resolvable, and which structures of a nested model are superfluous; else empty.
        empirical: the semivariogram that was fitted.
        weights: the weights of the fit.
        nugget: whether the nugget was fitted.
    """

    model: VariogramModel
    r2: float
    residuals: Floats
    resolvable: bool
    note: str
    empirical: EmpiricalVariogram
    weights: Weights = "cressie"
    nugget: bool = True

    def refit(self, gamma: Floats) -> VariogramModel:
        """Fit other values of the same bins, from this model and with its weights.

        Args:
            gamma: (K,) semivariances; NaN where a bin is to be left out.

        Returns:
            The model; nothing is said of how well it fits.

        Raises:
            ValueError: another shape.
            RuntimeError: the optimiser found no solution.
            ImportError: SciPy is not installed.
        """
        if gamma.shape != self.empirical.gamma.shape:
            raise ValueError(f"gamma: wanted shape {self.empirical.gamma.shape}, got {gamma.shape}")
        bins = _Bins.of(self.empirical, gamma, self.model.metric, self.weights, self.nugget)
        model = _scipy_fit(bins, self.model, bins.weights_at(self.model))
        return model if model.sill <= bins.top_sill else bins.fitted(model, bins.weights_at(self.model))

    def save(self, path: str | Path) -> None:
        """Write the model for `VariogramModel.load`, with the note where it is not resolvable.

        Raises:
            OSError: the file cannot be written.
        """
        self.model.save(path, doubt="" if self.resolvable else self.note)

    def bootstrap(self, draws: int = 200, *, seed: int = 0) -> FitDraws:
        """Fit semivariograms drawn as `EmpiricalVariogram.bootstrap` draws them, for intervals.

        Args:
            draws: how many, at least 2.
            seed: seed of the draws.

        Returns:
            `interval(level=0.95)` gives the parameters' (2,) intervals by name, `band(h_km)` the curve's.

        Raises:
            ValueError: as `EmpiricalVariogram.bootstrap`, or the fit is not resolvable.
            RuntimeError: more than half of the draws could not be fitted.
        """
        from semivario_kernels.bootstrap import bootstrap_fit

        return bootstrap_fit(self, draws, seed=seed)

    def plot(self, ax: Axes | None = None, draws: FitDraws | None = None) -> Axes:
        """Draw the points and the fitted curve with nugget, sill and range, on a logarithmic axis of km.

        Args:
            ax: matplotlib Axes to draw into; None makes a new pyplot figure.
            draws: what `bootstrap` returned, whose 95 % bands are drawn.

        Raises:
            ImportError: matplotlib is not installed; names the extra that brings it.
            ValueError: draws of another number of bins.
        """
        from semivario_kernels.variogram_plot import plot_variogram

        return plot_variogram(self.empirical, self.model, ax, draws=draws)


def fit_variogram(
    empirical: EmpiricalVariogram,
    kind: str | tuple[str, ...] = "stable",
    *,
    metric: Metric = "arc",
    weights: Weights = "cressie",
    nugget: bool = True,
) -> VariogramFit:
    """Fit a model by weighted least squares; GSTools does the fit.

    The sill stays between 0 and 2, the largest dissimilarity, and below three times the largest gamma. (Where
    a gamma lies above 2, and so is none of 1 − cos, only the latter holds.)

    Args:
        empirical: the empirical semivariogram; empty bins are left out.
        kind: "stable", "exponential", "gaussian", "spherical" or "matern32"; a tuple of them for a nested
            model, the sum of these structures; "nested" for two exponential structures.
        metric: "arc" or "chord": the lag that enters the correlation, see `VariogramModel`.
        weights: per squared residual: "cressie", counts/γ_model² by reweighting (Cressie, 1985), right where
            pairs are independent; "counts"; "equal"; or "stderr", 1/stderr², right where they share places.
        nugget: False keeps the nugget at 0.

    Returns:
        The best of three starts. Degenerate data do not raise; `resolvable` is then False, `note` says why.

    Raises:
        ValueError: no EmpiricalVariogram; an unknown kind, metric or weights; or no more filled bins than
            parameters.
        RuntimeError: the optimiser found no solution; the message holds its reason and the data.
        ImportError: GSTools is not installed; names the extra that brings it.

    Warns:
        UserWarning: where the fitted model is not a valid covariance on the sphere: with great-circle
            distance, gaussian, matern32 and stable with α > 1 are not (Gneiting, 2013).
    """
    if not isinstance(empirical, EmpiricalVariogram):
        raise ValueError(f"empirical: wanted an EmpiricalVariogram, got {type(empirical).__name__}")
    kinds = _check_kinds(kind)
    if metric not in ("arc", "chord"):
        raise ValueError(f"metric: wanted 'arc' or 'chord', got {metric!r}")
    if weights not in WEIGHTS:
        raise ValueError(f"weights: wanted 'cressie', 'counts', 'equal' or 'stderr', got {weights!r}")
    bins = _Bins.of(empirical, empirical.gamma, metric, weights, nugget)
    parameters = 2 * len(kinds) + kinds.count("stable") + int(nugget)
    if len(bins.lag_km) <= parameters or bins.lag_km.max() <= 0:
        raise ValueError(
            f"empirical: a {'+'.join(kinds)} model has {parameters} parameters; wanted more filled bins "
            f"than that, at lags above 0 km, got {len(bins.lag_km)} at lags "
            f"{np.array2string(bins.lag_km, precision=3)} km"
        )
    if np.ptp(bins.gamma) <= ROUNDING * max(1.0, bins.largest):
        model, r2 = bins.flat(kinds), 0.0
        reasons, remarks = ["the semivariogram is flat"], list[str]()
    else:
        model = _best_of_starts(bins, kinds)
        r2 = bins.r2(model)
        reasons, remarks = _degeneracies(bins, model, r2, parameters)
    if not reasons:
        _warn_if_invalid_on_sphere(model)
    filled = np.isfinite(empirical.lag_km) & np.isfinite(empirical.gamma)
    fitted = np.where(filled, model(np.where(filled, empirical.lag_km, 0.0)), np.nan)
    return VariogramFit(
        model=model,
        r2=r2,
        residuals=empirical.gamma - fitted,
        resolvable=not reasons,
        note="; ".join(reasons + remarks),
        empirical=empirical,
        weights=weights,
        nugget=nugget,
    )


def _check_kinds(kind: object) -> tuple[str, ...]:
    kinds = NESTED if kind == "nested" else tuple(kind) if isinstance(kind, tuple | list) else (kind,)
    for name in kinds:
        if name not in KINDS:
            raise ValueError(f"kind: wanted one of {', '.join(KINDS)}, 'nested' or a tuple, got {name!r}")
    if not kinds:
        raise ValueError("kind: wanted at least one structure, got an empty tuple")
    return kinds


@dataclass(frozen=True, eq=False)
class _Bins:
    """The bins that are fitted, how they are weighed, and the bounds of the search."""

    lag_km: Floats
    x: Floats  # the lag that enters the correlation
    gamma: Floats
    counts: Floats
    stderr: Floats
    metric: Metric
    weights: Weights
    nugget: bool

    @classmethod
    def of(
        cls, empirical: EmpiricalVariogram, gamma: Floats, metric: Metric, weights: Weights, nugget: bool
    ) -> _Bins:
        """Take the bins that hold pairs, a finite gamma and, where it is the weight, a standard error."""
        kept: npt.NDArray[np.bool_] = (empirical.counts > 0) & np.isfinite(gamma)
        if weights == "stderr":
            kept &= np.isfinite(empirical.stderr)
        lag = empirical.lag_km[kept]
        return cls(
            lag_km=lag,
            x=chord_km(torch.from_numpy(lag)).numpy() if metric == "chord" else lag,
            gamma=gamma[kept],
            counts=empirical.counts[kept].astype(np.float64),
            stderr=empirical.stderr[kept],
            metric=metric,
            weights=weights,
            nugget=nugget,
        )

    @property
    def largest(self) -> float:
        return max(float(self.gamma.max()), 0.0)

    @property
    def top_sill(self) -> float:
        """No sill above: 2, unless the values are plainly not 1 − cos."""
        top = TOP_SILL * self.largest
        return min(top, LARGEST_D) if self.largest <= LARGEST_D else top

    @property
    def len_scale_bounds(self) -> tuple[float, float]:
        return float(self.x[self.x > 0].min()) / 100, 10 * float(self.x.max())

    def weights_at(self, model: VariogramModel) -> Floats:
        """Weights of the squared residuals."""
        floor = FLOOR * self.largest
        w: Floats = self.counts / self.counts.mean()
        if self.weights == "cressie":
            w = w / np.maximum(model(self.lag_km), floor) ** 2
        elif self.weights == "stderr":
            w = 1 / np.maximum(self.stderr, floor) ** 2
        elif self.weights == "equal":
            w = np.ones_like(w)
        return w

    def cost(self, model: VariogramModel) -> float:
        """Cressie's criterion Σ N·(gamma/γ − 1)², or the weighted sum of squares: to compare starts by."""
        fitted = model(self.lag_km)
        squares = (self.gamma - fitted) ** 2
        if self.weights == "cressie":
            squares = self.counts * squares / np.maximum(fitted, FLOOR * self.largest) ** 2
        else:
            squares = self.weights_at(model) * squares
        cost = float(squares.sum())
        return cost if math.isfinite(cost) else math.inf

    def r2(self, model: VariogramModel) -> float:
        w = self.weights_at(model)
        flat = np.average(self.gamma, weights=w)
        return float(
            1 - (w * (self.gamma - model(self.lag_km)) ** 2).sum() / (w * (self.gamma - flat) ** 2).sum()
        )

    def flat(self, kinds: tuple[str, ...]) -> VariogramModel:
        """A pure nugget."""
        level = max(float(np.average(self.gamma, weights=self.counts)), 0.0)
        n = len(kinds)
        return VariogramModel(kinds, level, (0.0,) * n, (float(self.lag_km.max()),) * n, metric=self.metric)

    def start(self, kinds: tuple[str, ...], fraction: int) -> VariogramModel:
        """Where a search begins: the length scale at the largest lag over `fraction`."""
        lower, upper = self.len_scale_bounds
        rise = self.largest - float(self.gamma.min()) / 2
        apart = [3.0 ** (k - (len(kinds) - 1) / 2) for k in range(len(kinds))]  # of nested structures
        return VariogramModel(
            kinds,
            nugget=max(float(self.gamma.min()) / 2, 0.0) if self.nugget else 0.0,
            psill=tuple(rise / len(kinds) for _ in kinds),
            len_scale_km=tuple(
                float(np.clip(self.x.max() / fraction * factor, 2 * lower, upper / 2)) for factor in apart
            ),
            metric=self.metric,
        )

    def fitted(self, start: VariogramModel, w: Floats) -> VariogramModel:
        """One weighted least-squares fit, its sill within bounds."""
        model = _gstools_fit(self, start, w)
        if model.sill > self.top_sill:  # each part is within its bounds, but not their sum
            model = _gstools_fit(self, model, w, nugget=model.nugget, var=self.top_sill - model.nugget)
        return _by_length_scale(model)


def _best_of_starts(bins: _Bins, kinds: tuple[str, ...]) -> VariogramModel:
    candidates: list[VariogramModel] = []
    failures: set[str] = set()
    for fraction in STARTS:
        model = bins.start(kinds, fraction)
        try:
            for _ in range(REWEIGHTINGS if bins.weights == "cressie" else 1):
                model = bins.fitted(model, bins.weights_at(model))
            candidates.append(model)
        except (RuntimeError, ValueError) as error:  # curve_fit raises both
            failures.add(str(error))
    if not candidates:
        raise RuntimeError(
            f"no {'+'.join(kinds)} model could be fitted: {'; '.join(sorted(failures))}; "
            f"lags {bins.lag_km} km, gamma {bins.gamma}, counts {bins.counts.astype(np.int64)}"
        )
    return min(candidates, key=bins.cost)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep two remarks back that are no news to a fit of γ.

    GSTools warns of alpha < 0.3 because random fields of such a model are hard to make, and SciPy where the
    parameters' covariance, which nobody reads here, cannot be estimated.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*'alpha' is < 0.3")
        warnings.filterwarnings("ignore", message="Covariance of the parameters could not be estimated")
        yield


@_quiet()
def _gstools_fit(bins: _Bins, model: VariogramModel, w: Floats, **fixed: float) -> VariogramModel:
    """One weighted least-squares pass from `model`, in the metric's own lag; `fixed` are GSTools' names."""
    import_gstools()
    # an arc model's γ is a function of the lag itself
    start = VariogramModel.from_dict({**model.to_dict(), "metric": "arc"})
    gs_model = start.to_gstools()
    top = bins.top_sill
    nested = len(start.structures) > 1
    guess: dict[str, Any] = {}
    bounds: dict[str, list[float]] = {}
    for k, (kind, psill, len_scale, alpha) in enumerate(start.structures):
        suffix = f"_{k}" if nested else ""
        guess |= {f"var{suffix}": psill, f"len_scale{suffix}": len_scale}
        bounds |= {f"var{suffix}": [0.0, top], f"len_scale{suffix}": list(bins.len_scale_bounds)}
        if kind == "stable":
            guess[f"alpha{suffix}"] = max(alpha, 2 * SMALLEST_ALPHA)
            bounds[f"alpha{suffix}"] = [SMALLEST_ALPHA, 2.0]
        if kind == "matern32":
            fixed[f"nu{suffix}"] = 1.5  # GSTools would fit it
    if bins.nugget:
        guess["nugget"] = start.nugget
        bounds["nugget"] = [0.0, top]
    else:
        fixed["nugget"] = 0.0
    gs_model.set_arg_bounds(check_args=False, **bounds)
    gs_model.fit_variogram(
        bins.x,
        bins.gamma,
        init_guess=guess,
        weights=np.sqrt(w),  # GSTools' weights multiply the residual, ours its square
        loss="linear",
        max_eval=1000,
        curve_fit_kwargs={"x_scale": "jac"},
        **fixed,
    )
    fitted = VariogramModel.from_gstools(gs_model)
    return VariogramModel.from_dict({**fitted.to_dict(), "metric": model.metric})


def _scipy_fit(bins: _Bins, model: VariogramModel, w: Floats) -> VariogramModel:
    """The least squares of `_gstools_fit`, for hundreds of refits: GSTools takes 30 times as long.

    At every evaluation of γ it sets the model's attributes anew and checks the bounds of all of them.
    """
    from scipy.optimize import least_squares  # GSTools brings it

    kinds = [kind for kind, *_ in model.structures]
    x, root_w = torch.from_numpy(bins.x), np.sqrt(w)
    values = model.parameters.numpy().copy()  # nugget, then psill, length scale and alpha of each structure
    low, high, free = np.zeros_like(values), np.full_like(values, bins.top_sill), np.ones(len(values), bool)
    low[2::3], high[2::3] = bins.len_scale_bounds
    low[3::3], high[3::3] = SMALLEST_ALPHA, 2.0
    free[0] = bins.nugget
    free[3::3] = [kind == "stable" for kind in kinds]

    def residuals(free_values: Floats) -> Floats:
        values[free] = free_values
        fitted = torch.full_like(x, values[0])
        for kind, psill, len_scale, alpha in zip(
            kinds, values[1::3], values[2::3], values[3::3], strict=True
        ):
            fitted += psill * (1 - kind_correlation(kind, x / len_scale, alpha))
        weighted: Floats = root_w * (fitted.numpy() - bins.gamma)
        return weighted

    start = np.clip(values, low, high)[free]
    solution = least_squares(residuals, start, bounds=(low[free], high[free]), x_scale="jac", max_nfev=200)
    if not solution.success:
        raise RuntimeError(solution.message)
    values[free] = solution.x
    fitted = VariogramModel.from_parameters(model.signature, torch.from_numpy(values))
    return _by_length_scale(fitted)


def _by_length_scale(model: VariogramModel) -> VariogramModel:
    """Structures of one kind are interchangeable: let them stand by length scale."""
    order = [kind for kind, *_ in model.structures]
    structures = sorted(model.structures, key=lambda structure: (order.index(structure[0]), structure[2]))
    kinds, psills, len_scales, alphas = zip(*structures, strict=True)
    return VariogramModel(kinds, model.nugget, psills, len_scales, alphas, model.metric)


def _degeneracies(
    bins: _Bins, model: VariogramModel, r2: float, parameters: int
) -> tuple[list[str], list[str]]:
    """Why the data do not tell a range, and what else is superfluous."""
    reasons: list[str] = []
    remarks: list[str] = []
    # R² rises with every parameter, on noise too
    adjusted = 1 - (1 - r2) * (len(bins.gamma) - 1) / (len(bins.gamma) - parameters)
    if adjusted < RESOLVABLE_R2:
        reasons.append(f"adjusted R² {adjusted:.2f} over a flat model is below {RESOLVABLE_R2}")
    if model.sill >= bins.top_sill / AT_BOUND:
        reasons.append(f"sill {model.sill:.3g} at its upper bound")
    lower, upper = bins.len_scale_bounds
    for kind, psill, len_scale_km, alpha in model.structures:
        if len(model.structures) > 1 and psill < NEGLIGIBLE * model.sill:
            remarks.append(f"the {kind} structure of {len_scale_km:.3g} km is superfluous")
            continue
        if len_scale_km <= lower * AT_BOUND:
            reasons.append(f"length scale {len_scale_km:.3g} km at its lower bound")
        if len_scale_km >= upper / AT_BOUND:
            reasons.append(f"length scale {len_scale_km:.3g} km at its upper bound")
        if kind == "stable" and alpha <= SMALLEST_ALPHA * AT_BOUND:
            reasons.append(f"alpha {alpha:.3g} at its lower bound")
    return reasons, remarks


def _warn_if_invalid_on_sphere(model: VariogramModel) -> None:
    if model.metric == "chord":
        return
    for kind, psill, _, alpha in model.structures:
        if psill > 0 and (kind in ("gaussian", "matern32") or (kind == "stable" and alpha > 1)):
            shape = f" with alpha {alpha:.2f}" if kind == "stable" else ""
            warnings.warn(
                f"{kind}{shape} is no valid covariance in great-circle distance; fit with metric='chord'",
                stacklevel=3,
            )
