"""Argument checks: every error names the argument, what came and what was wanted."""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ArrayLike = torch.Tensor | npt.NDArray[Any]

FEATURE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
POSITION_DTYPES = (torch.float32, torch.float64)


def as_tensor(name: str, value: object) -> torch.Tensor:
    """Return a tensor as it is and a NumPy array as a tensor that shares its memory."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise ValueError(f"{name}: wanted numbers, got a NumPy array of dtype {value.dtype}")
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
        if any(stride < 0 for stride in value.strides) or not value.flags.writeable:
            value = value.copy()  # torch refuses the first and warns of the second
        return torch.from_numpy(value)
    raise ValueError(f"{name}: wanted a tensor or a NumPy array, got {type(value).__name__}")


def is_checked(tensor: torch.Tensor) -> bool:
    """Say whether values may be looked at: always on the CPU, elsewhere only with SEMIVARIO_CHECK=1."""
    return tensor.device.type == "cpu" or os.environ.get("SEMIVARIO_CHECK") == "1"


def check_matrix(
    name: str,
    value: object,
    *,
    rows: int | None = None,
    columns: int | None = None,
    allow_empty: bool = False,
) -> torch.Tensor:
    """Return `value` as a (rows, columns) tensor of a floating dtype, with rows if not `allow_empty`."""
    tensor = as_tensor(name, value)
    # text only where it is raised: that of a symbolic size fixes it to one number under torch.compile
    if tensor.ndim != 2 or rows not in (None, tensor.shape[0]) or columns not in (None, tensor.shape[1]):
        raise ValueError(f"{name}: wanted shape {_matrix(rows, columns)}, got {tuple(tensor.shape)}")
    if tensor.shape[1] == 0 or (tensor.shape[0] == 0 and not allow_empty):
        wanted = f"{_matrix(rows, columns)} with at least one row"
        raise ValueError(f"{name}: wanted shape {wanted}, got {tuple(tensor.shape)}")
    if tensor.dtype not in FEATURE_DTYPES:
        raise ValueError(f"{name}: wanted float32, float64, bfloat16 or float16, got {tensor.dtype}")
    return tensor


def _matrix(rows: int | None, columns: int | None) -> str:
    return f"({'n' if rows is None else rows}, {'dimensions' if columns is None else columns})"


def check_latlon(
    name: str,
    value: object,
    *,
    rows: int | None = None,
    values: bool = True,
    allow_empty: bool = False,
) -> torch.Tensor:
    """Return positions as a float (rows, 2) tensor; with `values`, coordinates are looked at too."""
    tensor = as_tensor(name, value)
    if not tensor.is_floating_point() and tensor.dtype is not torch.bool:
        tensor = tensor.double()  # whole degrees are exact
    if tensor.ndim != 2 or tensor.shape[1] != 2 or rows not in (None, tensor.shape[0]):
        wanted = f"{_matrix(rows, 2)} of (latitude, longitude) in degrees"
        raise ValueError(f"{name}: wanted shape {wanted}, got {tuple(tensor.shape)}")
    if tensor.shape[0] == 0 and not allow_empty:
        wanted = f"{_matrix(rows, 2)} of (latitude, longitude) in degrees with at least one row"
        raise ValueError(f"{name}: wanted shape {wanted}, got {tuple(tensor.shape)}")
    if tensor.dtype not in POSITION_DTYPES:
        raise ValueError(f"{name}: wanted float32 or float64 degrees, got {tensor.dtype}")
    if values and is_checked(tensor):
        check_coordinates(name, tensor)
    return tensor


def check_coordinates(name: str, latlon: torch.Tensor) -> None:
    """Refuse NaN, infinite coordinates and latitudes outside ±90°."""
    bad = ~torch.isfinite(latlon).all(dim=1) | (latlon[:, 0].abs() > 90)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        swapped = torch.isfinite(latlon).all() and latlon[:, 1].abs().max() <= 90
        raise ValueError(
            f"{name}: wanted finite (latitude, longitude) in degrees with latitude within ±90, "
            f"got {tuple(latlon[row].tolist())} in row {row}"
            + ("; are latitude and longitude swapped?" if swapped else "")
        )


def check_same(what: str, first_name: str, first: torch.Tensor, name: str, tensor: torch.Tensor) -> None:
    """Refuse two tensors that differ in `what` ('device' or 'dtype')."""
    wanted, got = getattr(first, what), getattr(tensor, what)
    if wanted != got:
        raise ValueError(f"{name}: wanted the {what} of {first_name}, {wanted}, got {got}")


def check_indices(name: str, value: object, *, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return int64 indices of `shape` (-1 in it stands for any length); their values are not looked at."""
    tensor = as_tensor(name, value)
    if tensor.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, tensor.shape, strict=True)):
        wanted = ", ".join("k" if n < 0 else str(n) for n in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: wanted shape ({wanted}), got {tuple(tensor.shape)}")
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name}: wanted int64 indices, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: wanted device {device}, got {tensor.device}")
    return tensor


def check_range(name: str, indices: torch.Tensor, low: int, high: int) -> None:
    """Refuse indices outside low … high−1."""
    bad = (indices < low) | (indices >= high)
    if bool(bad.any()):
        raise ValueError(f"{name}: wanted indices in {low} … {high - 1}, got {int(indices[bad][0])}")


def check_number(
    name: str,
    value: float,
    *,
    low: float = -float("inf"),
    high: float = float("inf"),
    open_low: bool = False,
) -> float:
    """Return a finite float in [low, high], or (low, high] with `open_low`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: wanted a number, got {value!r}") from None
    if not (-math.inf < number < math.inf and low <= number <= high and not (open_low and number == low)):
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]"
        raise ValueError(f"{name}: wanted a finite number in {bounds}, got {value!r}")
    return number


def check_whole(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return a whole number of `low` … `high`, or of `low` or more."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of {low} or more" if high is None else f"in {low} … {high}"
        raise ValueError(f"{name}: wanted a whole number {bounds}, got {value!r}")
    return number


def like_input(result: torch.Tensor, *inputs: object) -> Any:
    """Return NumPy where every input was NumPy, a tensor otherwise."""
    given = [value for value in inputs if value is not None]
    return result.numpy() if all(isinstance(value, np.ndarray) for value in given) else result
