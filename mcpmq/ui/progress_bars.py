"""Progress of a command: bars in a terminal, lines in a file or a pipe."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event, Thread
from time import monotonic
from typing import Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Display
from rich.text import Text

from mcpmq.system.escaping import escape_controls
from mcpmq.system.progress import Stage
from mcpmq.system.table import format_seconds

Item = TypeVar("Item")
HEARTBEAT_SECONDS = 30.0  # between lines in a file or a pipe
MIN_REPORTED_SECONDS = 1.0  # stages that took less leave no line in a terminal


class CommandProgress(Protocol):
    """Progress of one command; its loops are numbered stages."""

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]: ...

    def stop(self) -> None:
        """Remove the display; the command prints its result."""


class _Count(MofNCompleteColumn):
    """Finished and all items; empty for the command itself, which has no number of items."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text("")


@dataclass(slots=True)
class _Numbering:
    """The number of the current stage; loops outside of declared stages are stages without a total."""

    number: int = 0
    total: int | None = None

    def declare(self, stages: Sequence[Item], begin: Callable[[str], None]) -> Iterator[Item]:
        """Yield stages; `begin` gets their names. Those of a part of the command are not counted."""
        if self.total is not None:
            yield from stages
            return
        self.number, self.total = 0, len(stages)
        for stage in stages:
            self.number += 1
            begin(self.name(stage.label if isinstance(stage, Stage) else ""))
            yield stage
        self.total = None

    def begin_loop(self, label: str) -> str:
        """Return the name of a loop that is not in another one."""
        self.number += self.total is None
        return self.name(label)

    def name(self, label: str) -> str:
        """Return a label with the number of the stage."""
        return f"[{self.number}] {label}" if self.total is None else f"[{self.number} of {self.total}] {label}"


def _are_stages(items: Sequence[Item]) -> bool:
    return bool(items) and isinstance(items[0], Stage)


class ProgressBars:
    """Draw a bar for every loop below that of the command; nested loops share one display.

    The display moves ten times per second, so a long call without a loop is visible. A finished stage leaves a line.
    """

    def __init__(self, console: Console, label: str) -> None:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Count()]
        self._display = Display(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
        self._depth, self._numbering = 0, _Numbering()
        self._label = label
        self._display.start()
        self._command = self._display.add_task(_plain(label), total=None)

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]:
        if _are_stages(items):
            return self._numbering.declare(items, self._begin_stage)
        return self._iterate(items, label)

    def _begin_stage(self, name: str) -> None:
        self._display.update(self._command, description=_plain(f"{self._label} {name}"))

    def stop(self) -> None:
        """Remove the display."""
        self._display.stop()

    def _iterate(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        name = self._numbering.begin_loop(label) if self._depth == 0 else label
        task, begin = self._display.add_task(_plain(name), total=len(items)), monotonic()
        self._depth += 1
        try:
            for item in items:
                yield item
                self._display.advance(task)
        finally:
            self._depth -= 1
            self._end(task, name, monotonic() - begin)

    def _end(self, task: TaskID, name: str, seconds: float) -> None:
        done = int(next(one.completed for one in self._display.tasks if one.id == task))
        self._display.remove_task(task)
        if self._depth == 0 and seconds >= MIN_REPORTED_SECONDS and self._display.live.is_started:
            self._display.console.print(Text(escape_controls(f"{name}: {done} in {format_seconds(seconds)}"), "dim"))


def _plain(label: str) -> str:
    return escape(escape_controls(label))


class ProgressLines:
    """Print a line when a stage begins, and every 30 seconds its finished items and the estimated remaining time."""

    def __init__(self, write: Callable[[str], None], label: str, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._write, self._label, self._done, self._count = write, label, 0, 0
        self._depth, self._numbering = 0, _Numbering()
        self._begin = monotonic()
        self._stopped = Event()
        self._heartbeat_seconds = heartbeat_seconds
        write(label)
        Thread(target=self._beat, daemon=True, name="progress").start()

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]:
        if _are_stages(items):
            return self._numbering.declare(items, partial(self._show, count=0))
        return self._iterate(items, label)

    def _show(self, name: str, count: int) -> None:
        """Set the stage or the loop that the next lines are about."""
        self._label, self._done, self._count, self._begin = name, 0, count, monotonic()

    def stop(self) -> None:
        """Print no more lines."""
        self._stopped.set()

    def _iterate(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        outermost = self._depth == 0
        if outermost:
            self._show(self._numbering.begin_loop(label), len(items))
            self._write(f"{self._label}: 0 of {self._count}")
        self._depth += 1
        try:
            for item in items:
                yield item
                self._done += outermost
        finally:
            self._depth -= 1

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_seconds):
            self._write(self._status())

    def _status(self) -> str:
        seconds = monotonic() - self._begin
        counted = f": {self._done} of {self._count}" if self._count else ""
        left = seconds / self._done * (self._count - self._done) if 0 < self._done < self._count else None
        remaining = "" if left is None else f", about {format_seconds(left)} left"
        return f"{self._label}{counted}, {format_seconds(seconds)} elapsed{remaining}"
