"""Workers of engines that need torch, forked from a process that has imported it: an import takes seconds.

Each worker is a process of its own with the environment and the streams of `child_process`. `tests.conftest` uses this
module for all tests without the fixture `started_workers`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from mcpmq.runners import worker
from mcpmq.system.child_process import child_process

ENGINES = {"torch", "dequantized", "transformers"}
CONTEXT = get_context("forkserver")
STDOUT, STDERR = 1, 2
IMPORTED = [*(f"mcpmq.runners.{name}" for name in ("worker", "greedy", *sorted(ENGINES)))]
IMPORTED += ["mcpmq.families.minicpmv_inputs", "mcpmq.families.modeling_minicpmv"]
CONTEXT.set_forkserver_preload(IMPORTED)


class ForkedWorker:
    """The part of `subprocess.Popen` that the launcher uses."""

    def __init__(self, process: BaseProcess, stdout: IO[str]) -> None:
        self._process, self.stdout = process, stdout
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit code if the process has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            TimeoutExpired: the process has not ended.
        """
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        return code


def start_worker(module: str, task: str, **options: Any) -> AbstractContextManager[Any]:
    """Fork the worker of a task if its engine needs torch, else start it; a replacement of `child_process`."""
    if json.loads(Path(task).read_bytes())["engine"] not in ENGINES:
        return child_process(module, task, **options)
    return _forked(task, options["env"], options["stderr"], options["errors"])


@contextmanager
def _forked(task: str, environment: Mapping[str, str], stderr: IO[bytes], errors: str) -> Iterator[ForkedWorker]:
    read, write = os.pipe()
    with os.fdopen(read, errors=errors) as stdout:
        try:
            streams = _Inherited(write), _Inherited(stderr.fileno())
            process = CONTEXT.Process(target=_run, args=(task, dict(environment), *streams), daemon=True)
            process.start()
        finally:
            os.close(write)
        try:
            yield ForkedWorker(process, stdout)
        finally:
            process.kill()
            process.join()
            process.close()


class _Inherited:
    """A file descriptor that a child receives as the number of its copy."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _detach, (DupFd(self._descriptor),)


def _detach(copy: Any) -> int:
    descriptor: int = copy.detach()
    return descriptor


def _run(task: str, environment: dict[str, str], stdout: int, stderr: int) -> None:
    os.dup2(stdout, STDOUT)
    os.dup2(stderr, STDERR)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(worker.main(task))
