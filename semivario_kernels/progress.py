"""A progress bar for long work, which needs rich only where it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from semivario_kernels.extras import install_command


@contextmanager
def progress_bar(description: str, total: int, unit: str, shown: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that adds to what is done; bar, rate and time left stand on standard error.

    Raises:
        ImportError: `shown`, and rich is not installed.
    """
    if not shown:
        yield lambda done: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            Task,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text
    except ImportError as error:
        raise ImportError(
            "progress=True draws with rich, which is not installed; "
            f"it comes with: {install_command('variogram')}"
        ) from error

    class RateColumn(TextColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g} {unit}/s" if speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        RateColumn(""),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)
