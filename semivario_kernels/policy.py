"""Negative policies: the last third of the pair arithmetic, in torch.

A policy turns distance h, dissimilarity d, γ(h) and ρ(h) of a negative pair into its logit factor a, its
log-weight b and its soft-target mass f. The log-weight is added: multiplying a signed logit would make a
negative logit easier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from semivario_kernels.checks import check_number
from semivario_kernels.variogram import VariogramModel

READS_NOTHING = ("none",)
READS_POSITIONS_ONLY = ("distance", "distance_linear")
READS_DISSIMILARITY = ("semivariogram", "explained", "threshold", "rectify", "penalty")
POLICY_KINDS = READS_NOTHING + READS_POSITIONS_ONLY + READS_DISSIMILARITY
PARAMETERS = ("hard", "false", "far", "tolerance", "mass", "range_km", "strength", "scale_km", "weight")

NEUTRAL = (1.0, 0.0, 0.0)  # a, b and f of a positive


class PairTerms(NamedTuple):
    """What a policy says of every pair, (N, M) each; None where it is a = 1, b = 0 or f = 0 throughout."""

    factor: torch.Tensor | None = None
    log_weight: torch.Tensor | None = None
    soft_target: torch.Tensor | None = None


@dataclass(frozen=True)
class NegativePolicy:
    """How negative pairs are re-weighted; made by one of its presets.

    With e = γ(h) − d, the surprise (positive when a pair is more alike than expected at its distance), and
    e⁺ = max(0, e − tolerance), every negative's logit becomes a·s·⟨x, y⟩ + b, and f is the mass it gets as a
    soft positive. Positives are never re-weighted, and all terms are constants for the gradient.
    Use the presets; the fields a kind does not read stay 0.

    Attributes:
        kind: the preset's name.
        hard: log-weight per unit of surprise of an uncorrelated (far) pair, ≥ 0.
        false: log-weight taken off a fully correlated (near) pair, ≥ 0: per unit of surprise, or, by
            `explained`, the most.
        far: log-weight that `explained` gives an uncorrelated (far) pair, ≥ 0.
        tolerance: surprise that is forgiven, ≥ 0, in units of the dissimilarity.
        mass: soft-target mass of `rectify`, ≥ 0, in units of the positive's.
        range_km: where near ends for `threshold` and `penalty`, km, > 0.
        strength: of `distance`, > −1.
        scale_km: distance at which the distance policies have fallen to 1/e, km, > 0.
        weight: log-weight that `distance_linear` takes off a pair at 0 km, of any sign.

    Raises:
        ValueError: an unknown kind, or a number that is not finite or out of its range.
    """

    kind: str
    hard: float = 0.0
    false: float = 0.0
    far: float = 0.0
    tolerance: float = 0.0
    mass: float = 0.0
    range_km: float = 0.0
    strength: float = 0.0
    scale_km: float = 0.0
    weight: float = 0.0

    # the numbers as operators carry them, (9,) float64 in the order of PARAMETERS
    parameters: ClassVar[torch.Tensor]

    def __post_init__(self) -> None:
        if self.kind not in POLICY_KINDS:
            raise ValueError(f"policy: wanted a kind of {', '.join(POLICY_KINDS)}, got {self.kind!r}")
        for name in ("hard", "false", "far", "tolerance", "mass"):
            self._check(name, low=0)
        self._check("strength", low=-1, open_low=True)
        self._check("weight")
        self._check("range_km", low=0, open_low=self.kind in ("threshold", "penalty"))
        self._check("scale_km", low=0, open_low=self.kind in READS_POSITIONS_ONLY)
        numbers = [getattr(self, name) for name in PARAMETERS]
        object.__setattr__(self, "parameters", torch.tensor(numbers, dtype=torch.float64, device="cpu"))

    def _check(self, name: str, *, low: float = -float("inf"), open_low: bool = False) -> None:
        object.__setattr__(self, name, check_number(name, getattr(self, name), low=low, open_low=open_low))

    @property
    def reads_positions(self) -> bool:
        """Whether h is needed."""
        return self.kind not in READS_NOTHING

    @property
    def reads_dissimilarity(self) -> bool:
        """Whether d and γ are needed, and so embeddings and a fitted variogram."""
        return self.kind in READS_DISSIMILARITY

    @classmethod
    def none(cls) -> NegativePolicy:
        """Plain InfoNCE: needs no variogram, no positions and no embeddings."""
        return cls("none")

    @classmethod
    def semivariogram(cls, hard: float, false: float, tolerance: float = 0.0) -> NegativePolicy:
        """b = e⁺·(hard·(1−ρ) − false·ρ): surprise decides, the fitted correlation says how far is far.

        Args:
            hard: log-weight per unit of surprise of an uncorrelated (far) pair, ≥ 0.
            false: log-weight taken off per unit of surprise of a fully correlated (near) pair, ≥ 0.
            tolerance: surprise that is forgiven, ≥ 0, in units of the dissimilarity.

        Raises:
            ValueError: a number that is negative or not finite.
        """
        return cls("semivariogram", hard=hard, false=false, tolerance=tolerance)

    @classmethod
    def explained(
        cls, hard: float = 0.0, false: float = 3.0, tolerance: float = 0.0, far: float = 5.0
    ) -> NegativePolicy:
        """b = (1−ρ)·(hard·e⁺ + far) − false·ρ·max(0, 1 − d/sill).

        As `semivariogram`, but a near pair is excused for how alike it is, not for surprise: where γ(h) is
        close to 0 nothing can be more alike than expected. And a far place counts e^far times. A batch of
        neighbouring places holds most of the places that are near, but only a few of those far away, and
        these few stand for all of them: a sampled softmax is corrected by the logarithm of how seldom an
        entry is drawn (Bengio and Senécal 2008; Yi et al., RecSys 2019).

        The defaults were chosen for batches of neighbouring places, on other draws of the worlds and on
        validation photos. On test photos (docs/results.md, five seeds, points above plain InfoNCE within
        25 km and within 1 km, 95 % intervals): +3.2 [+2.5, +3.9] and +2.4 [+1.7, +3.3] on the demo's field
        at noise 0.8; +9.7 [+8.4, +10.9] and +0.5 [−0.5, +1.7] on synthetic towns with look-alikes, +10.8
        [+9.5, +12.1] and +0.9 [+0.0, +1.9] where pictures are rendered of them.

        Args:
            hard: log-weight per unit of surprise of an uncorrelated (far) pair, ≥ 0.
            false: the most log-weight that is taken off, of a pair at distance 0 with d = 0, ≥ 0.
            tolerance: surprise of far pairs that is forgiven, ≥ 0, in units of the dissimilarity.
            far: log-weight of an uncorrelated (far) pair, ≥ 0, with or without an image.

        Raises:
            ValueError: a number that is negative or not finite.
        """
        return cls("explained", hard=hard, false=false, tolerance=tolerance, far=far)

    @classmethod
    def threshold(cls, hard: float, false: float, range_km: float, tolerance: float = 0.0) -> NegativePolicy:
        """b = +hard·e⁺ where h > range_km, −false·e⁺ elsewhere: a sharp range.

        Args:
            hard: log-weight per unit of surprise of a far pair, ≥ 0.
            false: log-weight taken off per unit of surprise of a near pair, ≥ 0.
            range_km: where near ends, km, > 0; the fitted model's `range_km()` is one.
            tolerance: surprise that is forgiven, ≥ 0, in units of the dissimilarity.

        Raises:
            ValueError: a number that is not finite or out of its range.
        """
        return cls("threshold", hard=hard, false=false, range_km=range_km, tolerance=tolerance)

    @classmethod
    def rectify(cls, mass: float, hard: float, false: float, tolerance: float = 0.0) -> NegativePolicy:
        """b as `semivariogram`; f = mass·min(1, e⁺/γ)·ρ (0 where γ = 0): soft positives.

        Args:
            mass: of a pair at distance 0 that looks the same, in units of the positive's, ≥ 0.
            hard: as `semivariogram`.
            false: as `semivariogram`.
            tolerance: as `semivariogram`.

        Raises:
            ValueError: a number that is negative or not finite.
        """
        return cls("rectify", mass=mass, hard=hard, false=false, tolerance=tolerance)

    @classmethod
    def penalty(cls, range_km: float) -> NegativePolicy:
        """a = exp(max(0, −e)) where h ≤ range_km, else 1.

        What the published work log on semivariograms for contrastive geolocation computes (`get_penalty5`),
        kept so that results can be compared.

        Args:
            range_km: where near ends, km, > 0.

        Raises:
            ValueError: range_km is not finite or not above 0.
        """
        return cls("penalty", range_km=range_km)

    @classmethod
    def distance(cls, strength: float, scale_km: float) -> NegativePolicy:
        """b = log(1 + strength·exp(−h/scale_km)): a comparator that needs no images.

        In the manner of HierLoc's geo-weighted contrastive loss (Gadi et al., 2026).

        Args:
            strength: added to the weight of a pair at 0 km, > −1; above 0 near pairs count more.
            scale_km: distance at which it has fallen to 1/e, km, > 0.

        Raises:
            ValueError: a number that is not finite or out of its range.
        """
        return cls("distance", strength=strength, scale_km=scale_km)

    @classmethod
    def distance_linear(cls, weight: float, scale_km: float) -> NegativePolicy:
        """b = −weight·exp(−h/scale_km): the distance-only comparator of the evidence tables.

        Args:
            weight: log-weight that a pair at 0 km loses; below 0 near pairs count more.
            scale_km: distance at which it has fallen to 1/e, km, > 0.

        Raises:
            ValueError: a number that is not finite or out of its range.
        """
        return cls("distance_linear", weight=weight, scale_km=scale_km)

    def torch_terms(
        self,
        h_km: torch.Tensor,
        d: torch.Tensor | None = None,
        gamma: torch.Tensor | None = None,
        rho: torch.Tensor | None = None,
        sill: float = 0.0,
    ) -> PairTerms:
        """a, b and f of pairs, which are taken for negatives with images; nothing is checked.

        Args:
            h_km: great-circle distances, of any shape.
            d: dissimilarities, of that shape; d, γ and ρ only where the policy reads them.
            gamma: γ(h).
            rho: ρ(h).
            sill: of the semivariogram, for `explained`.
        """
        if self.kind == "none":
            return PairTerms()
        if self.kind == "distance":
            return PairTerms(log_weight=torch.log1p(self.strength * torch.exp(-h_km / self.scale_km)))
        if self.kind == "distance_linear":
            return PairTerms(log_weight=-self.weight * torch.exp(-h_km / self.scale_km))
        assert d is not None
        assert gamma is not None
        assert rho is not None
        surprise = gamma - d
        if self.kind == "penalty":
            near = h_km <= self.range_km
            return PairTerms(factor=torch.where(near, torch.exp((-surprise).clamp(min=0)), 1.0))
        excess = (surprise - self.tolerance).clamp(min=0)
        if self.kind == "threshold":
            far = h_km > self.range_km
            return PairTerms(log_weight=torch.where(far, self.hard * excess, -self.false * excess))
        if self.kind == "explained":
            alike = (1 - d / sill).clamp(min=0) if sill > 0 else torch.zeros_like(d)
            beyond = (1 - rho) * (self.hard * excess + self.far)
            return PairTerms(log_weight=beyond - self.false * rho * alike)
        log_weight = excess * (self.hard * (1 - rho) - self.false * rho)
        if self.kind == "semivariogram":
            return PairTerms(log_weight=log_weight)
        alike = torch.where(gamma > 0, (excess / gamma).clamp(max=1), 0.0)  # kind == "rectify"
        return PairTerms(log_weight=log_weight, soft_target=self.mass * alike * rho)


def pair_terms(
    policy: NegativePolicy,
    variogram: VariogramModel | None,
    h_km: torch.Tensor,
    d: torch.Tensor | None,
    positive: torch.Tensor,
    blank: torch.Tensor | None = None,
) -> PairTerms:
    """a, b and f of pairs at distance h with dissimilarity d; the `positive` keep a = 1, b = f = 0.

    `variogram` and `d` are None where the policy does not read them; all tensors have one shape. Where
    `blank`, one of the two has no image.
    """
    if d is not None and blank is not None:
        # what has no image is alike to nothing; `penalty` is for those that are less alike than expected
        d = d.masked_fill(blank, -math.inf if policy.kind == "penalty" else math.inf)
    if variogram is None:
        terms = policy.torch_terms(h_km)
    else:
        rho = variogram.torch_correlation(h_km)
        gamma = variogram.nugget + variogram.total_psill * (1 - rho)
        terms = policy.torch_terms(h_km, d, gamma, rho, variogram.sill)
    return PairTerms(
        *(
            None if term is None else term.masked_fill(positive, neutral)
            for term, neutral in zip(terms, NEUTRAL, strict=True)
        )
    )
