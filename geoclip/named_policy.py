"""A negative policy as a configuration names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semivario_kernels import NegativePolicy


def named_policy(preset: str, strengths: Mapping[Any, float]) -> NegativePolicy:
    """Make a preset of `NegativePolicy`.

    Args:
        preset: its name.
        strengths: its arguments by name; YAML reads a bare `false` as a boolean, which is taken for the name.

    Raises:
        ValueError: an unknown preset, an argument too many or too few, or one out of its range.
    """
    presets = [name for name, value in vars(NegativePolicy).items() if isinstance(value, classmethod)]
    if preset not in presets:
        raise ValueError(f"policy: wanted one of {', '.join(presets)}, got {preset!r}")
    named = {"false" if name is False else name: value for name, value in strengths.items()}
    try:
        policy: NegativePolicy = getattr(NegativePolicy, preset)(**named)
    except TypeError as error:
        raise ValueError(f"strengths: {error}") from error
    return policy
