"""Pools run the processes of steps: on this machine, with memory forecasts as admission control, or on a cluster."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from subprocess import Popen
from typing import Any, Protocol, Self

from mcpmq.errors import SweepError
from mcpmq.sweep.process import failure, step_process
from mcpmq.sweep.steps import Step
from mcpmq.system.table import format_megabytes

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Event:
    """A step began, or ended; `error` is "" if it succeeded."""

    step: str
    ended: bool
    error: str = ""


class Pool(Protocol):
    """Runs submitted steps when their resources are free."""

    def check(self, step: Step) -> None:
        """Check that a step can run.

        Raises:
            SweepError: it needs more memory than there is.
        """

    def submit(self, step: Step) -> None:
        """Run a step as soon as there are a process and memory for it."""

    def wait(self, seconds: float) -> list[Event]:
        """Return the steps that began or ended, after this time or when there is one."""


@dataclass(slots=True)
class LocalPool:
    """At most `jobs` processes, whose memory forecasts together are at most `memory_nbytes`."""

    jobs: int
    memory_nbytes: int
    processes: ExitStack
    waiting: list[Step] = field(default_factory=list)
    running: dict[str, tuple[Step, "Popen[Any]", ExitStack]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, jobs: int, memory_nbytes: int) -> Iterator[Self]:
        """Yield a pool; its processes are killed at the end of the block, or if a signal ends this process."""
        with ExitStack() as processes:
            yield cls(jobs, memory_nbytes, processes)

    def check(self, step: Step) -> None:
        if not step.adaptive and step.memory_nbytes > self.memory_nbytes:
            raise too_large(step, self.memory_nbytes, "raise `--memory-limit`, or use a machine with more memory")

    def submit(self, step: Step) -> None:
        self.waiting.append(step)

    def wait(self, seconds: float) -> list[Event]:
        end = time.monotonic() + seconds
        while True:
            events = [*self._ended(), *self._begun()]
            if events or time.monotonic() >= end:
                return events
            time.sleep(POLL_SECONDS)

    def _reserved(self, step: Step) -> int:
        return min(step.memory_nbytes, self.memory_nbytes)

    def _begun(self) -> Iterator[Event]:
        """Start the steps that fit, in their order; a large one is not overtaken for ever, because the others end."""
        for step in list(self.waiting):
            used = sum(self._reserved(one) for one, *_ in self.running.values())
            if len(self.running) < self.jobs and used + self._reserved(step) <= self.memory_nbytes:
                self.waiting.remove(step)
                stack = self.processes.enter_context(ExitStack())
                process = stack.enter_context(step_process(step.folder, step.request))
                self.running[step.name] = step, process, stack
                yield Event(step.name, ended=False)

    def _ended(self) -> Iterator[Event]:
        for name, (step, process, stack) in list(self.running.items()):
            if (code := process.poll()) is not None:
                stack.close()
                del self.running[name]
                yield Event(name, ended=True, error=failure(step.folder, code))


def too_large(step: Step, available_nbytes: int, hint: str) -> SweepError:
    """Return the error of a step that needs more memory than there is."""
    needed, available = format_megabytes(step.memory_nbytes), format_megabytes(available_nbytes)
    return SweepError(f"{step.label} needs about {needed} of memory, the limit is {available}", hint)
