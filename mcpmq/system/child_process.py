"""Child processes that end with their parent, also if the parent is killed.

    python -m mcpmq.system.child_process FD MODULE ARGUMENT...

runs a module like `python -m MODULE ARGUMENT...`, and ends when the parent closes its end of the pipe FD or dies.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from runpy import run_module
from threading import Thread
from typing import Any

from mcpmq.system.interruption import cleanup_on_exit

PR_SET_PDEATHSIG = 1  # option of prctl(2): the signal that the process receives when its parent dies
PARENT_DIED = 70  # exit code
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")  # of libraries


@contextmanager
def child_process(module: str, *arguments: str, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Run a module in a child process, which is killed at the end of the block; `options` are those of `Popen`."""
    read, write = os.pipe()
    try:
        command = [sys.executable, "-P", "-m", "mcpmq.system.child_process", str(read), module, *arguments]
        process = subprocess.Popen(command, pass_fds=(read,), **options)
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    try:
        with cleanup_on_exit(lambda: _kill(process)):
            yield process
    finally:
        _kill(process)
        os.close(write)


def _kill(process: "subprocess.Popen[Any]") -> None:
    """Kill a process and close its pipes."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


def end_with_parent(pipe: int) -> None:
    """End this process when its parent dies or closes its end of the pipe; ignore Ctrl-C, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Thread(target=_exit_at_end_of_pipe, args=(pipe,), daemon=True, name="parent").start()


def _exit_at_end_of_pipe(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(PARENT_DIED)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    run_module(sys.argv[0], run_name="__main__", alter_sys=True)
