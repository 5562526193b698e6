"""A progress bar by rich, behind the core's Progress protocol."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Bar:
    """Shows nested pieces of work as bars that go away when they are done."""

    def __init__(self) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: list[TaskID] = []

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, label: str, total: int | None) -> None:
        """Begin a piece of work."""
        self._tasks.append(self._bars.add_task(label, total=total, note=""))

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report steps done."""
        if self._tasks:
            self._bars.update(self._tasks[-1], advance=steps, note=note)

    def finish(self) -> None:
        """End the piece of work begun last."""
        if self._tasks:
            self._bars.remove_task(self._tasks.pop())
