"""The progress bar of the long jobs: done, total, speed, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self.unit}/s")


@contextmanager
def progress_bar(
    description: str, total: int, unit: str, *, completed: int = 0, enabled: bool = True
) -> Iterator[Callable[[int], None]]:
    """Shows a bar on standard error; yields a function that advances it by a number of units.

    Args:
        description: what is being done, for example "embedding".
        total: units in the whole job.
        unit: plural noun of a unit, shown with the speed ("images" gives images/s).
        completed: units that an earlier run has done.
        enabled: False shows nothing; the yielded function then does nothing.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as progress:
        task = progress.add_task(description, total=total, completed=completed)
        yield lambda units: progress.advance(task, units)
