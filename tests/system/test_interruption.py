"""Ctrl-C, SIGTERM and SIGHUP: resources are released, and the process ends soon with a message and 128 + signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from textwrap import dedent

import pytest

SCRIPT = """
import os, signal, sys, time
from contextlib import suppress
from mcpmq.system.interruption import cleanup_on_exit, exit_on_signals, run_until_signal

def command():
    {command}

exit_on_signals()
run_until_signal(command)
"""
READY = "print('ready', flush=True)"
RESUME = "run the same command again to resume; finished steps are not repeated"


def start(command: str, prefix: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """Start a script that runs the statements of a command, and wait until it prints a line."""
    indented = dedent(command).strip().replace("\n", "\n    ")
    arguments = [*prefix, sys.executable, "-c", SCRIPT.format(command=indented)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (15, "SIGTERM", 143), (signal.SIGHUP, "SIGHUP", 129)]
)
def test_a_signal_ends_the_process_with_a_message(number: int, name: str, code: int) -> None:
    """`finally` blocks run; stderr names the signal and has the hint to resume; no traceback is printed."""
    ignored = signal.signal(
        number, signal.SIG_DFL
    )  # a test run under `nohup` ignores SIGHUP, and children inherit that
    try:
        process = start(f"""
            try:
                {READY}
                time.sleep(60)
            finally:
                print("released", flush=True)
        """)
    finally:
        signal.signal(number, ignored)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (code, "released\n")
    assert err == f"error: interrupted by {name}\n\nhint: {RESUME}\n"


def test_a_lost_interruption_ends_the_process_after_a_second() -> None:
    """A library that catches every exception does not keep the process alive; cleanups run, newest first."""
    process = start(f"""
        with cleanup_on_exit(lambda: print("first", flush=True)), cleanup_on_exit(lambda: print("second", flush=True)):
            announced = False
            while True:
                with suppress(BaseException):  # the signal may arrive before `print` returns
                    if not announced:
                        announced = True
                        {READY}
                    time.sleep(60)
    """)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (143, "second\nfirst\n")
    assert 0.9 < time.monotonic() - started < 4


def test_a_cleanup_runs_once() -> None:
    """A cleanup of a block that was left is not called."""
    process = start(f"""
        with cleanup_on_exit(lambda: print("cleanup", flush=True)):
            pass
        {READY}
        time.sleep(60)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == ""


def test_another_error_during_an_interruption_is_not_reported() -> None:
    """An import that turns the interruption into an ImportError ends with the message of the interruption."""
    process = start(f"""
        try:
            {READY}
            time.sleep(60)
        except BaseException:
            raise ImportError("cannot import")
    """)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err.startswith("error: interrupted by Ctrl-C\n")


def test_a_second_signal_does_not_interrupt_the_release_of_resources() -> None:
    """Impatient users press Ctrl-C twice."""
    process = start(f"""
        try:
            {READY}
            time.sleep(60)
        finally:
            print("begin", flush=True)
            time.sleep(0.3)
            print("end", flush=True)
    """)
    process.send_signal(signal.SIGINT)
    assert process.stdout
    assert process.stdout.readline() == "begin\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "end\n"
    assert process.returncode == 130


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    """A run under `nohup` survives SIGHUP."""
    process = start(f"{READY}; time.sleep(0.3); print('done')", ["nohup"])
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10)[0] == "done\n"
    assert process.returncode == 0


def test_a_signal_after_the_command_is_ignored() -> None:
    """The result is complete, so the exit code is that of the command."""
    process = start(f"""
        import atexit
        atexit.register(lambda: ({READY}, time.sleep(0.3)))
        raise SystemExit(3)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 3
    process.communicate()


@pytest.mark.parametrize("delay", [0.08, 0.2, 0.4, 0.7])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_while_it_imports(delay: float, number: int) -> None:
    """At any time the command has ended or ends within two seconds, without a traceback."""
    command = [sys.executable, "-m", "mcpmq", "families"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while "_interrupt" not in _handlers(process.pid) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=4)
    finally:
        process.kill()
    assert process.returncode in (0, 128 + number)
    assert "Traceback" not in err
    assert ("hint: " + RESUME in err) == (process.returncode != 0)


def _handlers(pid: int) -> str:
    """Return `_interrupt` if the process handles SIGTERM, else an empty text."""
    try:
        with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
            caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    except (OSError, StopIteration):
        return "_interrupt"
    return "_interrupt" if caught >> (signal.SIGTERM - 1) & 1 else ""


def test_the_terminal_shows_the_cursor_again() -> None:
    """The progress display hides it; the escape sequence is written to a terminal only."""
    terminal, end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(command=f"{READY}; time.sleep(60)")], stdout=subprocess.PIPE, stderr=end
    )
    os.close(end)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert b"\x1b[?25h" in os.read(terminal, 1000)
    os.close(terminal)
