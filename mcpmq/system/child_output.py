"""Read the output of a child process, and detect that it does not respond."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO

import psutil

POLL_SECONDS = 1.0


class UnresponsiveError(Exception):
    """The process has used no processor time for too long."""


def output_lines(process: "subprocess.Popen[str]", max_idle_seconds: float) -> Iterator[str]:
    """Yield the lines of stdout until the process has ended.

    A slow process uses processor time; a stopped or blocked one does not. The time of a suspended machine or a stopped
    parent does not count.

    Raises:
        UnresponsiveError: the process wrote nothing and used no processor time for `max_idle_seconds`.
    """
    lines: SimpleQueue[str | None] = SimpleQueue()
    idle = _IdleTime(process.pid, max_idle_seconds)
    Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
    while (line := _next(lines, idle)) is not None:
        yield line
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return
        idle.count()


def _forward(stream: IO[str], lines: "SimpleQueue[str | None]") -> None:
    with suppress(OSError, ValueError):  # closed by the other thread
        for line in stream:
            lines.put(line)
    lines.put(None)


def _next(lines: "SimpleQueue[str | None]", idle: "_IdleTime") -> str | None:
    while True:
        with suppress(Empty):
            line = lines.get(timeout=POLL_SECONDS)
            idle.reset()
            return line
        idle.count()


class _IdleTime:
    """Counts consecutive seconds in which a process used no processor time."""

    def __init__(self, pid: int, max_seconds: float) -> None:
        self._pid, self._max_seconds = pid, max_seconds
        self._cpu_seconds, self._seconds = 0.0, 0.0

    def reset(self) -> None:
        self._seconds = 0.0

    def count(self) -> None:
        """Count one more poll.

        Raises:
            UnresponsiveError: the process has been idle for the maximum time.
        """
        used = self._cpu_seconds
        with suppress(psutil.Error):  # the process has just ended
            used = sum(psutil.Process(self._pid).cpu_times()[:2])
        self._seconds = self._seconds + POLL_SECONDS if used == self._cpu_seconds else 0.0
        self._cpu_seconds = used
        if self._seconds >= self._max_seconds:
            raise UnresponsiveError
