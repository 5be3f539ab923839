"""The semivariogram γ(h) and its correlation ρ(h): the second third of the pair arithmetic, in torch."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from semivario_kernels.atomic import write_atomically
from semivario_kernels.checks import check_number
from semivario_kernels.extras import install_command
from semivario_kernels.geometry import EARTH_RADIUS_KM, chord_km

if TYPE_CHECKING:
    import gstools
    from matplotlib.axes import Axes

Metric = Literal["arc", "chord"]

GAUSSIAN_RESCALE = (
    math.sqrt(math.pi) / 2
)  # GSTools scales its Gaussian so that len_scale is its integral scale
MATERN32_RESCALE = math.sqrt(1.5)  # GSTools puts √ν, not √(2ν), into its Matérn

KINDS = ("stable", "exponential", "gaussian", "spherical", "matern32")


def kind_correlation(kind: str, z: torch.Tensor, alpha: float) -> torch.Tensor:
    """Correlation ρ of one structure at z = lag / length scale, with GSTools' formulas and rescaling."""
    if kind == "stable":
        return torch.exp(-(z**alpha))
    if kind == "exponential":
        return torch.exp(-z)
    if kind == "gaussian":
        return torch.exp(-((GAUSSIAN_RESCALE * z) ** 2))
    if kind == "spherical":
        z = z.clamp(max=1)
        return 1 - z * (1.5 - 0.5 * z * z)
    if kind == "matern32":
        z = (MATERN32_RESCALE * z).clamp(max=200)  # ρ is 0 there, and NaN at infinity
        return (1 + z) * torch.exp(-z)
    raise ValueError(f"kind: wanted one of {', '.join(KINDS)}, got {kind!r}")


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@dataclass(frozen=True)
class VariogramModel:
    """A fitted semivariogram γ(h) = nugget + psill·(1 − ρ(h)).

    A nested model, the sum of several structures, has tuples of one length for `kind`, `psill`,
    `len_scale_km` and `alpha`; then ρ = Σ psill_k·ρ_k / Σ psill_k and psill stands for Σ psill_k.

    Args:
        kind: "stable", "exponential", "gaussian", "spherical" or "matern32", as GSTools defines them.
        nugget: γ at h = 0 (GSTools' convention), ≥ 0, in units of the dissimilarity.
        psill: partial sill, the rise of γ from the nugget to the sill, ≥ 0.
        len_scale_km: length scale in km, > 0.
        alpha: shape of the stable kind, in (0, 2]; the other kinds do not read it.
        metric: the lag that enters ρ: "arc", the great-circle distance, or "chord", the straight line
            2R·sin(h/2R), which GSTools' lat/lon models use.

    Raises:
        ValueError: an unknown kind or metric, a number out of its range, tuples of different lengths.
    """

    kind: str | tuple[str, ...]
    nugget: float
    psill: float | tuple[float, ...]
    len_scale_km: float | tuple[float, ...]
    alpha: float | tuple[float, ...] = 1.0
    metric: Metric = "arc"

    # what operators carry: nugget, then psill, len_scale_km and alpha of every structure, float64; and a name
    parameters: ClassVar[torch.Tensor]
    signature: ClassVar[str]

    def __post_init__(self) -> None:
        if self.metric not in ("arc", "chord"):
            raise ValueError(f"metric: wanted 'arc' or 'chord', got {self.metric!r}")
        object.__setattr__(self, "nugget", check_number("nugget", self.nugget, low=0))
        kinds = _tuple(self.kind)
        alphas = _tuple(self.alpha)
        columns = {
            "kind": kinds,
            "psill": _tuple(self.psill),
            "len_scale_km": _tuple(self.len_scale_km),
            "alpha": alphas * len(kinds) if len(alphas) == 1 else alphas,
        }
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1 or not kinds:
            raise ValueError(f"kind, psill, len_scale_km, alpha: wanted one length, got {lengths}")
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"kind: wanted one of {', '.join(KINDS)} or a tuple of them, got {kind!r}")
        columns["psill"] = tuple(check_number("psill", value, low=0) for value in columns["psill"])
        columns["len_scale_km"] = tuple(
            check_number("len_scale_km", value, low=0, open_low=True) for value in columns["len_scale_km"]
        )
        columns["alpha"] = tuple(
            check_number("alpha", value, low=0, high=2, open_low=True) for value in columns["alpha"]
        )
        for name, values in columns.items():
            object.__setattr__(self, name, values[0] if len(values) == 1 else values)
        numbers = [self.nugget, *(value for structure in self.structures for value in structure[1:])]
        object.__setattr__(self, "parameters", torch.tensor(numbers, dtype=torch.float64, device="cpu"))
        object.__setattr__(self, "signature", ":".join((self.metric, *kinds)))

    @classmethod
    def from_parameters(cls, signature: str, parameters: torch.Tensor) -> VariogramModel:
        """Make the model as operators carry it.

        Args:
            signature: "metric:kind", with a further ":kind" for every further structure.
            parameters: nugget, then psill, len_scale_km and alpha of every structure.

        Raises:
            ValueError: as `VariogramModel`.
        """
        metric, *kinds = signature.split(":")
        numbers = parameters.tolist()
        psill, len_scale_km, alpha = (tuple(numbers[k::3]) for k in (1, 2, 3))
        return cls.from_dict(
            {
                "kind": tuple(kinds),
                "nugget": numbers[0],
                "psill": psill,
                "len_scale_km": len_scale_km,
                "alpha": alpha,
                "metric": metric,
            }
        )

    def __str__(self) -> str:
        """One line: nugget, each structure's partial sill and length scale, sill."""
        structures = ", ".join(
            f"{kind} {psill:.3f} with a length scale of {_rounded(length_km)} km"
            + (f" and alpha {alpha:.3g}" if kind == "stable" else "")
            for kind, psill, length_km, alpha in self.structures
        )
        return f"nugget {self.nugget:.3f}, {structures}, sill {self.sill:.3f}"

    @property
    def structures(self) -> list[tuple[str, float, float, float]]:
        """(kind, psill, len_scale_km, alpha) of every structure; one unless the model is nested."""
        return list(
            zip(*(_tuple(v) for v in (self.kind, self.psill, self.len_scale_km, self.alpha)), strict=True)
        )

    @property
    def total_psill(self) -> float:
        """Σ psill_k."""
        return float(sum(_tuple(self.psill)))

    @property
    def sill(self) -> float:
        """Nugget + partial sill: γ far away."""
        return self.nugget + self.total_psill

    def torch_correlation(self, h_km: torch.Tensor) -> torch.Tensor:
        """ρ(h) for a tensor of great-circle distances in km, of any shape; no checks."""
        lag = chord_km(h_km) if self.metric == "chord" else h_km
        rho = torch.zeros_like(lag)
        for kind, psill, len_scale_km, alpha in self.structures:
            share = psill / self.total_psill if self.total_psill > 0 else 1 / len(self.structures)
            rho += share * kind_correlation(kind, lag / len_scale_km, alpha)
        return rho

    def correlation(self, h_km: Any) -> Any:
        """Spatial correlation ρ(h) in [0, 1] at great-circle distances h ≥ 0 in km.

        Returns:
            A float for a number, a float64 NumPy array for an array or list, a tensor for a tensor, of the
            shape that came.

        Raises:
            ValueError: a negative or NaN distance (looked for on the CPU).
        """
        if isinstance(h_km, torch.Tensor):
            lag = h_km if h_km.is_floating_point() else h_km.double()
        else:
            lag = torch.from_numpy(np.array(h_km, dtype=np.float64))
        if lag.device.type == "cpu" and not bool((lag >= 0).all()):
            raise ValueError(f"h_km: wanted distances ≥ 0 km, got {float(lag[~(lag >= 0)].reshape(-1)[0])}")
        rho = self.torch_correlation(lag)
        if isinstance(h_km, torch.Tensor):
            return rho
        return float(rho) if rho.ndim == 0 else rho.numpy()

    def __call__(self, h_km: Any) -> Any:
        """γ(h) at great-circle distances h ≥ 0 in km; types and errors as in `correlation`."""
        return self.nugget + self.total_psill * (1 - self.correlation(h_km))

    def range_km(self, fraction: float = 0.95) -> float:
        """Great-circle distance at which γ − nugget has reached `fraction` of the partial sill.

        Args:
            fraction: above 0 and below 1.

        Returns:
            km; infinite where a chord model does not reach it on the whole Earth. An arc model may reach it
            beyond the antipode (20,015 km): then no two places are uncorrelated.

        Raises:
            ValueError: a fraction out of its range.
        """
        check_number("fraction", fraction, low=0, high=math.nextafter(1.0, 0.0), open_low=True)
        low, high = 0.0, max(len_scale_km for _, _, len_scale_km, _ in self.structures)
        furthest = math.pi * EARTH_RADIUS_KM if self.metric == "chord" else math.inf
        while self.correlation(min(high, furthest)) > 1 - fraction:
            if high >= furthest:
                return math.inf
            low, high = high, 2 * high
        high = min(high, furthest)
        for _ in range(100):  # ρ falls monotonically; each halving gains a bit
            middle = (low + high) / 2
            low, high = (middle, high) if self.correlation(middle) > 1 - fraction else (low, middle)
        return high

    def to_dict(self) -> dict[str, Any]:
        """Return the model as plain numbers, strings and tuples."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VariogramModel:
        """Make the model that `to_dict` described; ValueError for missing, unknown or bad fields."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        missing = sorted({"kind", "nugget", "psill", "len_scale_km"} - set(values))
        if unknown or missing:
            raise ValueError(f"variogram model: missing fields {missing}, unknown fields {unknown}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def save(self, path: str | Path, *, doubt: str = "") -> None:
        """Write the model as JSON.

        Args:
            path: the file, which appears whole or not at all.
            doubt: why the model tells no range, of which `load` then warns; see `VariogramFit.save`.

        Raises:
            OSError: the file cannot be written.
        """
        values = {**self.to_dict(), **({"doubt": doubt} if doubt else {})}
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> VariogramModel:
        """Read a model that `save` wrote; warns where the data that it was fitted to told no range.

        Raises:
            ValueError: the file is something else; the message names it.
            OSError: it cannot be read.
        """
        try:
            values = json.loads(Path(path).read_text())
            if not isinstance(values, dict):
                raise ValueError(f"wanted a JSON object, got {type(values).__name__}")
            doubt = values.pop("doubt", "")
            model = cls.from_dict(values)
        except ValueError as error:  # json.JSONDecodeError is one
            raise ValueError(f"{path}: not a variogram model: {error}") from error
        if doubt:
            warnings.warn(f"{path}: no resolvable range: {doubt}", stacklevel=2)
        return model

    def to_gstools(self) -> gstools.CovModel:
        """Return the GSTools model with the same γ.

        A chord model becomes a lat/lon model with `geo_scale` R, whose γ at great-circle distance h is
        `vario_yadrenko(h)`; an arc model becomes a one-dimensional model in km, whose `variogram(h)` is γ.

        Raises:
            ImportError: GSTools is not installed; names the extra that brings it.
        """
        gs = import_gstools()
        place: dict[str, Any] = (
            {"latlon": True, "geo_scale": EARTH_RADIUS_KM} if self.metric == "chord" else {"dim": 1}
        )
        models = []
        for kind, psill, len_scale_km, alpha in self.structures:
            shape = {"stable": {"alpha": alpha}, "matern32": {"nu": 1.5}}.get(kind, {})
            name = {"matern32": "Matern"}.get(kind, kind.capitalize())
            models.append(getattr(gs, name)(var=psill, len_scale=len_scale_km, **shape, **place))
        if len(models) == 1:
            models[0].nugget = self.nugget
            return models[0]
        return gs.SumModel(*models, nugget=self.nugget)

    @classmethod
    def from_gstools(cls, model: gstools.CovModel) -> VariogramModel:
        """Make the model with the same γ as a GSTools model.

        Args:
            model: a Stable, Exponential, Gaussian, Spherical or Matern (ν = 1.5) model or a sum of them. A
                lat/lon model becomes a chord model, its length scale converted from its `geo_scale`;
                any other is taken to be in km of great-circle distance.

        Raises:
            ValueError: a kind that has no counterpart here, or an anisotropic model.
        """
        metric: Metric = "chord" if model.latlon else "arc"
        to_km = EARTH_RADIUS_KM / model.geo_scale if model.latlon else 1.0
        if not model.is_isotropic:
            raise ValueError(f"model: wanted an isotropic model, got anisotropy {model.anis}")
        parts = list(getattr(model, "models", [model]))
        rows = []
        for part in parts:
            kind = {"Matern": "matern32"}.get(part.name, part.name.lower())
            if kind not in KINDS or (kind == "matern32" and part.nu != 1.5):
                raise ValueError(
                    f"model: wanted Stable, Exponential, Gaussian, Spherical or Matern(nu=1.5), got {part!r}"
                )
            len_scale_km = float(part.len_scale * part.default_rescale() / part.rescale * to_km)
            rows.append((kind, float(part.var), len_scale_km, float(getattr(part, "alpha", 1.0))))
        kinds, psills, len_scales, alphas = (tuple(column) for column in zip(*rows, strict=True))
        return cls(kinds, float(model.nugget), psills, len_scales, alphas, metric)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw γ(h) on a logarithmic axis of km with nugget, sill and range marked.

        Args:
            ax: matplotlib Axes to draw into; None makes a new pyplot figure.

        Raises:
            ImportError: matplotlib is not installed; names the extra that brings it.
        """
        from semivario_kernels.variogram_plot import plot_variogram

        return plot_variogram(None, self, ax)


def import_gstools() -> Any:
    """Import GSTools, naming the extra that brings it where it is missing."""
    try:
        import gstools
    except ImportError as error:
        message = f"GSTools is not installed; it comes with: {install_command('variogram')}"
        raise ImportError(message) from error
    return gstools


def _rounded(number: float) -> str:
    """Three digits, whole numbers with all of theirs."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
