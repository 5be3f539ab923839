"""What is compared: policies with their strengths, constant or changing over the training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from semivario_kernels import NegativePolicy

STRENGTHS = ("hard", "false", "mass", "weight")


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
        """As in `explained(hard=0, false=6), rising`."""
        arguments = ", ".join(f"{name}={value:g}" for name, value in self.arguments.items())
        words = [f"{self.preset}({arguments})"]
        words += [self.schedule] * (self.schedule != "constant")
        words += [f"{self.variogram} variogram"] * (self.variogram != "stable")
        return ", ".join(words)


PLAIN = Contestant("none")


# by the name on the command line; the first ones are the default comparison
COMPARED = {
    "none": PLAIN,
    "explained-6": Contestant("explained", {"hard": 0, "false": 6}),
    "explained-3": Contestant("explained", {"hard": 0, "false": 3}),
    "explained-10": Contestant("explained", {"hard": 0, "false": 10}),
    "explained-15": Contestant("explained", {"hard": 0, "false": 15}),
    "explained-6-hard-6": Contestant("explained", {"hard": 6, "false": 6}),
    "semivariogram-15": Contestant("semivariogram", {"hard": 0, "false": 15}),
    "semivariogram-5-5": Contestant("semivariogram", {"hard": 5, "false": 5}),
    "threshold-25-km": Contestant("threshold", {"hard": 5, "false": 5, "range_km": 25}),
    "rectify-0.5": Contestant("rectify", {"mass": 0.5, "hard": 0, "false": 15}),
    "penalty-25-km": Contestant("penalty", {"range_km": 25}),
    "distance-25-km": Contestant("distance", {"strength": -0.95, "scale_km": 25}),
    "distance_linear-25-km": Contestant("distance_linear", {"weight": 3, "scale_km": 25}),
    "explained-6-nested": Contestant("explained", {"hard": 0, "false": 6}, variogram="nested"),
}
DEFAULT = ("none", "explained-6")
# strengths of the default policy, chosen on held-out photos that no table of results reads
SEARCHED = (
    *(Contestant("explained", {"hard": 0, "false": false}) for false in (3, 6, 10, 15)),
    *(Contestant("explained", {"hard": 6, "false": false}) for false in (0, 6, 10)),
    Contestant("explained", {"hard": 6, "false": 6, "tolerance": 0.1}),
    Contestant("explained", {"hard": 0, "false": 6}, schedule="rising"),
    Contestant("explained", {"hard": 0, "false": 6}, schedule="falling"),
    Contestant("explained", {"hard": 0, "false": 6}, schedule="late"),
    Contestant("explained", {"hard": 0, "false": 6}, variogram="nested"),
)
