"""A progress bar for long loops, which needs rich only where it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T], description: str, shown: bool) -> Iterable[T]:
    """Iterate over `items`, with a bar and the time left on standard error where `shown`."""
    if not shown:
        return items
    try:
        from rich.console import Console
        from rich.progress import track as rich_track
    except ImportError as error:
        raise ImportError(
            "progress=True draws with rich, which is not installed; "
            "it comes with: pip install 'semivario-kernels[variogram]'"
        ) from error
    return rich_track(items, description=description, console=Console(stderr=True))
