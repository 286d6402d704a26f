"""Output of child processes: lines until the end, and an error for a process that does not respond."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mcpmq.system import child_output
from mcpmq.system.child_output import UnresponsiveError, output_lines


@pytest.fixture(autouse=True)
def _frequent_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_output, "POLL_SECONDS", 0.05)


def run(code: str, max_idle_seconds: float) -> list[str]:
    """Return the lines that a Python program prints."""
    program = f"import os, signal, sys, time\n{code}"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            return list(output_lines(process, max_idle_seconds))
        finally:
            process.kill()


def test_all_lines_are_returned_until_the_process_ends() -> None:
    """Output and exit within one poll are complete; a pause without output does not end them."""
    assert run("print('a'); print('b', flush=True); time.sleep(0.2); print('c')", 30) == ["a\n", "b\n", "c\n"]
    assert run("pass", 30) == []


def test_a_slow_process_is_responsive() -> None:
    """Processor time counts as a response, in any thread."""
    assert run("begin = time.monotonic()\nwhile time.monotonic() < begin + 1.5: pass\nprint('done')", 0.5) == ["done\n"]


@pytest.mark.parametrize(
    "wait",
    [
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "time.sleep(60)",
        "sys.stdout.flush(); os.close(1); time.sleep(60)",
    ],
)
def test_a_process_without_output_and_processor_time_does_not_respond(wait: str) -> None:
    """A stopped process, a blocked one, and one that does not exit after it has closed its output."""
    started = time.monotonic()
    with pytest.raises(UnresponsiveError):
        run(wait, 0.5)
    assert time.monotonic() - started < 20


def test_output_restarts_the_idle_time() -> None:
    """The limit applies to consecutive polls."""
    assert len(run("for _ in range(8): print('x', flush=True); time.sleep(0.25)", 0.6)) == 8


def test_the_time_of_a_stopped_parent_does_not_count() -> None:
    """Polls are counted, not seconds: Ctrl-Z stops both processes, and `fg` continues both."""
    code = "import subprocess, sys\nfrom mcpmq.system.child_output import output_lines\n"
    code += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2.5)'], stdout=subprocess.PIPE)\n"
    code += "print('ready', flush=True); print(list(output_lines(child, 4)))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    parent.stdout.readline()
    os.kill(parent.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(parent.pid, signal.SIGCONT)
    assert parent.communicate(timeout=20)[0] == "[]\n"
