"""The process of one step, with its output in a log file; the last line of the log is the status of the step."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcpmq.sweep.request import DONE_FILE, LOG_FILE, StepRequest
from mcpmq.system.child_process import THREAD_VARIABLES, child_process

COMMAND = "sweep-step"  # of the command line
TAIL_NBYTES = 4096  # of a log that are read for its last line
ERROR = re.compile(r"^error: (?P<message>.+?)\s*(\n\nhint: (?P<hint>.+?)\s*)?\Z", re.MULTILINE | re.DOTALL)


@contextmanager
def step_process(folder: Path, request: StepRequest) -> Iterator["subprocess.Popen[Any]"]:
    """Write the request into the folder of a step and carry it out in a process, which ends with this one.

    The log of an earlier attempt is replaced.
    """
    request.write(folder)
    (folder / DONE_FILE).unlink(missing_ok=True)
    threads = dict.fromkeys(THREAD_VARIABLES, str(request.threads))
    with (
        (folder / LOG_FILE).open("wb") as log,
        child_process(
            *("mcpmq", COMMAND, str(folder)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **threads},
        ) as process,
    ):
        yield process


def failure(folder: Path, exit_code: int) -> str:
    """Return the reason why a process failed, from its log and exit code; "" if it succeeded."""
    if exit_code == 0:
        return ""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        cause = "; the system sends it if memory is exhausted" if -exit_code == signal.SIGKILL else ""
        return f"the process was ended by {name}{cause}"
    if found := ERROR.search(_tail(folder)):
        hint = f" ({found['hint']})" if found["hint"] else ""
        return f"{found['message']}{hint}"
    return f"the process ended with exit code {exit_code}: {last_line(folder) or 'no output'}"


def last_line(folder: Path) -> str:
    """Return the last line of the log of a step, "" without one: its stage, and the finished items of a loop."""
    lines = [line.strip() for line in _tail(folder).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _tail(folder: Path) -> str:
    try:
        with (folder / LOG_FILE).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_NBYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""
