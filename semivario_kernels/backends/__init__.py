"""Which implementation runs the operators, and why."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch

# fastest first; each module has the operators and `unavailable(device) -> reason or None`, and may have
# `detail(device)`, which says how it runs
BACKENDS = ("triton", "native", "tiled", "reference")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"semivario_kernels.backends.{name}")


def available_backends(device: torch.device | str = "cpu") -> list[str]:
    """Names of the backends that can serve a device, fastest first.

    Args:
        device: "cpu", "cuda", "cuda:1", or a torch.device.

    Returns:
        Some of "triton", "native", "tiled" and "reference".

    Raises:
        RuntimeError: torch knows no such device.
    """
    place = torch.device(device)
    # Triton serves the CPU by its interpreter only, for tests, and only where it is asked for by name
    names = [name for name in BACKENDS if not (name == "triton" and place.type == "cpu")]
    return [name for name in names if _module(name).unavailable(place) is None]


def choose(name: str | None, tensor: torch.Tensor) -> str:
    """Name the backend for `tensor`: the argument, else SEMIVARIO_BACKEND, else the fastest available.

    Raises:
        ValueError: an unknown name, or a backend that cannot serve the tensor's device, with its reason.
    """
    chosen: str = _choose(name, str(tensor.device))
    return chosen


def _choose(name: str | None, device: str) -> str:
    place = torch.device(device)
    source = "backend" if name is not None else "SEMIVARIO_BACKEND"
    name = name or os.environ.get("SEMIVARIO_BACKEND") or None
    if name is None:
        return available_backends(place)[0]
    if name not in BACKENDS:
        raise ValueError(f"{source}: wanted one of {', '.join(BACKENDS)}, got {name!r}")
    reason = _module(name).unavailable(place)
    if reason is not None:
        raise ValueError(f"{source}: {name!r} cannot serve {place}: {reason}")
    return name


# what torch.compiler.assume_constant_result sets; calling it would import torch._dynamo, four seconds, here
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def load(name: str | None, tensor: torch.Tensor) -> ModuleType:
    """Import the backend that `choose` names."""
    return _module(choose(name, tensor))


def explain_backend(tensor: torch.Tensor) -> str:
    """Say which backend runs for a tensor, and why not the others.

    Args:
        tensor: on the device in question; its values and dtype are not looked at.

    Returns:
        A line of name and reason per backend, that which runs first.

    Raises:
        ValueError: SEMIVARIO_BACKEND names a backend that is unknown or cannot serve the device.
    """
    chosen = choose(None, tensor)
    forced = " (SEMIVARIO_BACKEND)" if os.environ.get("SEMIVARIO_BACKEND") else ""
    detail = getattr(_module(chosen), "detail", None)
    how = "" if detail is None else f", {detail(tensor.device)}"
    lines = [f"{chosen}: runs on {tensor.device}{forced}{how}"]
    for name in BACKENDS:
        if name != chosen:
            reason = _module(name).unavailable(tensor.device) or f"available; {chosen} comes first"
            lines.append(f"{name}: {reason}")
    return "\n".join(lines)
