"""Progress bars in a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Display

from mcpmq.system.escaping import escape_controls

Item = TypeVar("Item")


class ProgressBars:
    """Draw a bar for every loop; nested loops share one display, which is removed when the outermost loop ends."""

    def __init__(self, console: Console) -> None:
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        self._display = Display(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self._running = 0

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]:
        return self._iterate(items, label)

    def _iterate(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        task = self._begin(label, len(items))
        try:
            for item in items:
                yield item
                self._display.advance(task)
        finally:
            self._end(task)

    def _begin(self, label: str, count: int) -> TaskID:
        if self._running == 0:
            self._display.start()
        self._running += 1
        return self._display.add_task(escape(escape_controls(label)), total=count)

    def _end(self, task: TaskID) -> None:
        self._display.remove_task(task)
        self._running -= 1
        if self._running == 0:
            self._display.stop()
