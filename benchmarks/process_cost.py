"""The cost of a command: wall time, processor seconds and peak resident memory, with those of its children.

The peak that the system counts for a process begins with the memory of the process that starts it, so a launcher of
about 10 MB starts the command.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Arguments: the file descriptor that gets the result, and the command.
LAUNCHER = """
import json, os, sys, time
result, command, start = int(sys.argv[1]), sys.argv[2:], time.monotonic()
process = os.posix_spawnp(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_CLOSE, result)])
_, status, usage = os.wait4(process, 0)
found = time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
os.write(result, json.dumps([os.waitstatus_to_exitcode(status), *found]).encode())
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a process and its children, from start to end."""

    seconds: float
    processor_seconds: float
    peak_rss_bytes: int


def run_measured(
    words: Sequence[object],
    folder: Path,
    output: IO[str] | int | None = None,
    errors: IO[str] | int | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[int, Cost]:
    """Run a command in a folder; return its exit status, negative for a signal, and its cost."""
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(writing), *map(str, words)]
        options = {"cwd": folder, "env": variables, "stdout": output, "stderr": errors, "pass_fds": (writing,)}
        subprocess.run(command, check=True, **options)  # type: ignore[call-overload]
        os.set_blocking(reading, False)
        status, *cost = json.loads(os.read(reading, 4096))
    finally:
        os.close(reading)
        os.close(writing)
    return status, Cost(*cost)
