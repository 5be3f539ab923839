"""A progress bar for long loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], description: str, shown: bool) -> Iterable[T]:
    """Iterate over `items`, with a bar, rate and time left where `shown`."""
    if not shown:
        return items
    try:
        from rich.progress import track as rich_track
    except ImportError as error:
        raise ImportError(
            "progress=True draws with rich, which is not installed; "
            "it comes with: pip install 'semivario-kernels[variogram]'"
        ) from error
    return rich_track(items, description=description)
