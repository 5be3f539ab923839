"""What is compared: policies with their strengths, constant or changing over the training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from semivario_kernels import NegativePolicy

STRENGTHS = ("hard", "false", "far", "mass", "weight")


@dataclass(frozen=True)
class Contestant:
    """A preset of `NegativePolicy`, and how its strengths change over the training.

    Attributes:
        preset: name of the preset.
        arguments: the preset's arguments, strengths at their largest.
        schedule: "constant"; "rising" or "falling" linearly between 0 and the full strengths; "late": 0 in
            the first half of the steps, full in the second.
        variogram: kind of the fitted semivariogram.
    """

    preset: str
    arguments: dict[str, float] = field(default_factory=dict)
    schedule: Literal["constant", "rising", "falling", "late"] = "constant"
    variogram: str = "stable"

    def policy(self, progress: float) -> NegativePolicy:
        """The policy after this fraction of the steps."""
        share = {
            "constant": 1.0,
            "rising": progress,
            "falling": 1.0 - progress,
            "late": float(progress >= 0.5),
        }[self.schedule]
        now = {name: value * share if name in STRENGTHS else value for name, value in self.arguments.items()}
        made: NegativePolicy = getattr(NegativePolicy, self.preset)(**now)
        return made

    def settings(self) -> dict[str, Any]:
        """Plain values that tell it from every other contestant."""
        return asdict(self)

    @property
    def label(self) -> str:
        """As in `explained(hard=0, false=3, far=5), rising`."""
        arguments = ", ".join(f"{name}={value:g}" for name, value in self.arguments.items())
        words = [f"{self.preset}({arguments})"]
        words += [self.schedule] * (self.schedule != "constant")
        words += [f"{self.variogram} variogram"] * (self.variogram != "stable")
        return ", ".join(words)


PLAIN = Contestant("none")


def _explained(
    hard: float,
    false: float,
    far: float,
    schedule: Literal["constant", "rising", "falling", "late"] = "constant",
    variogram: str = "stable",
    **others: float,
) -> Contestant:
    strengths = {"hard": hard, "false": false, "far": far, **others}
    return Contestant("explained", strengths, schedule, variogram)


# by the name on the command line; the first ones are the default comparison
COMPARED = {
    "none": PLAIN,
    "explained": _explained(0, 3, 5),
    "explained-false-10": _explained(0, 10, 5),
    "explained-false-only": _explained(0, 10, 0),
    "explained-far-only": _explained(0, 0, 5),
    "explained-nested": _explained(0, 3, 5, variogram="nested"),
    # log(1 + 147.4) = 5 more for every negative wherever it is: what far does without a semivariogram
    "margin-5": Contestant("distance", {"strength": 147.4, "scale_km": 1e9}),
    "semivariogram-15": Contestant("semivariogram", {"hard": 0, "false": 15}),
    "semivariogram-5-5": Contestant("semivariogram", {"hard": 5, "false": 5}),
    "threshold-25-km": Contestant("threshold", {"hard": 5, "false": 5, "range_km": 25}),
    "rectify-0.5": Contestant("rectify", {"mass": 0.5, "hard": 0, "false": 15}),
    "penalty-25-km": Contestant("penalty", {"range_km": 25}),
    "distance-25-km": Contestant("distance", {"strength": -0.95, "scale_km": 25}),
    "distance_linear-25-km": Contestant("distance_linear", {"weight": 3, "scale_km": 25}),
}
DEFAULT = ("none", "explained")
# whose answers by support are measured as well
SUPPORTED_TOO = tuple(COMPARED[name] for name in DEFAULT)
# learning rates and starting logit scales under which the default comparison is made; the first are usual
SETTINGS: tuple[dict[str, float], ...] = (
    {},
    {"learning_rate": 2e-3},
    {"learning_rate": 5e-4},
    {"logit_scale": 8.0},
)
# strengths of the default policy, chosen on held-out photos that no table of results reads
SEARCHED = (
    *(_explained(0, false, 5) for false in (0, 3, 6, 10, 15)),
    *(_explained(0, 10, far) for far in (0, 2, 8)),
    _explained(6, 3, 5),
    _explained(6, 3, 5, tolerance=0.1),
    *(_explained(0, 3, 5, schedule) for schedule in ("rising", "falling", "late")),
    _explained(0, 3, 5, variogram="nested"),
    *(Contestant("rectify", {"mass": mass, "hard": 0, "false": 15}) for mass in (0.1, 0.5)),
)
