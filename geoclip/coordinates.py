"""Coordinates in degrees: the one check of those that come from a user's file, and their directions."""

from __future__ import annotations

import numpy as np
import torch


def check_latlon(latlon: np.ndarray, source: str) -> np.ndarray:
    """Hands coordinates on that can be latitude and longitude.

    Args:
        latlon: (N, 2) latitudes and longitudes in degrees.
        source: what the message calls the place they came from, usually a file.

    Returns:
        (N, 2) with longitudes within ±180 and rows that lie one after the other; `latlon` itself where it is
        so already.

    Raises:
        ValueError: a NaN or infinite value, a latitude outside ±90 or a longitude outside ±360 (up to there
            it is a turn too many). Names the first row, counted from 1; says so when its two values, or the
            two columns, look swapped.
    """
    if latlon.ndim != 2 or latlon.shape[1] != 2:
        raise ValueError(f"{source}: latlon has shape {latlon.shape}, wanted (N, 2): latitude, longitude")
    good = (np.abs(latlon) <= (90.0, 360.0)).all(axis=1)  # False for NaN and infinity too
    if good.all():
        beyond = np.abs(latlon[:, 1]) > 180
        if beyond.any():
            latlon = latlon.copy()
            latlon[beyond, 1] -= 360 * np.sign(latlon[beyond, 1])
        return np.ascontiguousarray(latlon)
    row = int(np.argmin(good))
    latitude, longitude = latlon[row]
    # some latitude is too large, and the row or all rows would be fine the other way round
    fits_swapped = (np.abs(latlon[:, ::-1]) <= (90.0, 360.0)).all(axis=1)
    hint = ""
    if fits_swapped.all() and len(latlon) > 1:
        hint = "; latitude and longitude look swapped in the whole list"
    elif fits_swapped[row]:
        hint = "; latitude and longitude look swapped in this row"
    raise ValueError(
        f"{source}: row {row + 1} has latitude {latitude:g}, longitude {longitude:g}; wanted finite degrees, "
        f"latitude within ±90, longitude within ±360" + hint
    )


def wrap_longitude(degrees: torch.Tensor) -> torch.Tensor:
    """Longitudes within ±180, in any shape; those that are there already stay the very same numbers."""
    turned = degrees - 360 * torch.ceil((degrees - 180) / 360)
    return torch.where(degrees.abs() > 180, turned, degrees)


def unit_vectors(latlon: np.ndarray) -> np.ndarray:
    """(…, 3) float64 directions of (…, 2) latitudes and longitudes in degrees."""
    latitude, longitude = np.moveaxis(np.radians(latlon), -1, 0)
    along = np.cos(latitude)
    return np.stack([along * np.cos(longitude), along * np.sin(longitude), np.sin(latitude)], axis=-1)
