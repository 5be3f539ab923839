"""Progress on the terminal: with rich where it is installed, else one line per case."""

from __future__ import annotations

import sys
from types import TracebackType


class Progress:
    """Cases done of all, and the rounds of the current one.

    Args:
        cases: how many there are.
    """

    def __init__(self, cases: int) -> None:
        self.cases = cases
        self.begun = 0
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress
        except ImportError:
            self.bars = None
            return
        self.bars = RichProgress(
            TextColumn("{task.description:<36}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self.all = self.bars.add_task("benchmarks", total=cases)
        self.one = self.bars.add_task("", total=None)

    def __enter__(self) -> Progress:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            if kind is None:
                self.bars.update(self.all, completed=self.cases)
            self.bars.stop()

    def begin(self, name: str) -> None:
        """Say which case begins; the one before it is done."""
        self.begun += 1
        if self.bars is None:
            print(f"[{self.begun}/{self.cases}] {name}", file=sys.stderr, flush=True)
        else:
            self.bars.update(self.all, completed=self.begun - 1)
            self.bars.remove_task(self.one)
            self.one = self.bars.add_task(name, total=None)

    def rounds(self, done: int, planned: int) -> None:
        """Say how many rounds of the current case are done."""
        if self.bars is not None:
            self.bars.update(self.one, completed=done, total=planned)
