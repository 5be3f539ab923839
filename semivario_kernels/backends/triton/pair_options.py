"""What the pair arithmetic is told: compile-time options and a tensor of numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from semivario_kernels.policy import NegativePolicy
from semivario_kernels.problem import InfoNCEProblem
from semivario_kernels.variogram import VariogramModel


def interprets() -> bool:
    """Whether Triton runs in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


LEAST_NUMBERS = 18  # that the kernels load


@dataclass(frozen=True)
class PairOptions:
    """Compile-time options of the pair arithmetic; see `arithmetic`."""

    policy: str = "none"
    kinds: tuple[str, ...] = ()
    chord: bool = False
    source: str = ""
    fast: bool = True

    @classmethod
    def of(cls, problem: InfoNCEProblem) -> PairOptions:
        """Return the options of one loss."""
        policy, model = problem.policy, problem.variogram
        source = ""
        if policy.reads_dissimilarity:
            source = "features" if problem.v is None else "embeddings"
        return cls(
            policy=policy.kind,
            kinds=() if model is None else tuple(structure[0] for structure in model.structures),
            chord=model is not None and model.metric == "chord",
            source=source,
            fast=not interprets() and torch.version.hip is None,
        )

    def constexprs(self) -> dict[str, Any]:
        """Return the kernels' arguments."""
        return {
            "POLICY": self.policy,
            "KINDS": self.kinds,
            "CHORD": self.chord,
            "SOURCE": self.source,
            "FAST": self.fast,
            "MAPPED": self._mapped(),
        }

    def _mapped(self) -> Any:
        if not self.fast or self.policy == "none" or len(self.kinds) > 2:
            return None
        from semivario_kernels.backends.triton.arithmetic import mapped_logits_of

        return mapped_logits_of(self.policy, self.kinds, self.chord, self.source)

    @property
    def label(self) -> str:
        """Short name for tables."""
        kinds = "+".join(self.kinds) + (" chord" if self.chord else "")
        source = "features" if self.source == "features" else ""
        return " ".join(part for part in (self.policy, kinds, source) if part)


def pair_parameters(
    policy: NegativePolicy, model: VariogramModel | None, device: torch.device
) -> torch.Tensor:
    """Numbers of policy and semivariogram in the order of `arithmetic`, float32 on `device`, zeros last.

    They travel as kernel arguments, since a copy from the host would synchronise and break a CUDA graph.
    """
    structures = [] if model is None else model.structures
    sill, total = (0.0, 0.0) if model is None else (model.sill, model.total_psill)
    numbers = [
        policy.hard,
        policy.false,
        policy.far,
        policy.tolerance,
        policy.mass,
        _rounded_down(policy.range_km),
        policy.strength,
        1 / policy.scale_km if policy.scale_km > 0 else 0.0,
        policy.weight,
        1 / sill if sill > 0 else 0.0,
        0.0 if model is None else model.nugget,
        total,
    ]
    for _, psill, len_scale_km, alpha in structures:
        share = psill / total if total > 0 else 1 / len(structures)
        numbers += [share, 1 / len_scale_km, alpha]
    parameters = torch.zeros(max(len(numbers), LEAST_NUMBERS), dtype=torch.float32, device=device)
    torch._foreach_add_(list(parameters.unbind()[: len(numbers)]), numbers)
    return parameters


def _rounded_down(x: float) -> float:
    nearest = np.float32(x)
    return float(np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > x else nearest)
