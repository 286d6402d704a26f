"""The end of a command: exit handlers run, output is complete, and the exit code is that of Python."""

import os
import subprocess
import sys
from collections.abc import Sequence
from textwrap import dedent

import pytest

SCRIPT = """
import atexit, gc, sys
from mcpmq.system.startup import collect_garbage_rarely, exit_without_teardown

class Destroyed:
    def __del__(self):
        print("destroyed", flush=True)

collect_garbage_rarely()
with exit_without_teardown():
    kept = Destroyed()
    kept.cycle = kept
    atexit.register(lambda: print("handler"))
    print("text without a newline", end=" ")
    {statement}
"""


def run(statement: str, prefix: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run a script that ends with a statement."""
    script = SCRIPT.format(statement=dedent(statement))
    command = [*prefix, sys.executable, "-c", script]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=buffered)


@pytest.mark.parametrize(
    ("statement", "code"),
    [("pass", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit(-1)", 255), ("sys.exit(True)", 1)],
)
def test_the_exit_code_remains_and_exit_handlers_run(statement: str, code: int) -> None:
    """Output is flushed after the handlers; objects of modules are not destroyed."""
    found = run(statement)

    assert (found.returncode, found.stderr) == (code, "")
    assert found.stdout == "text without a newline handler\n"


@pytest.mark.parametrize(
    ("statement", "last_line"),
    [("sys.exit('a message')", "a message"), ("raise ValueError(7)", "ValueError: 7")],
)
def test_messages_and_tracebacks_are_printed(statement: str, last_line: str) -> None:
    """Python prints them before the exit handlers run, and the exit code is 1."""
    found = run(statement)

    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == last_line
    assert found.stdout == "text without a newline handler\n"


@pytest.mark.parametrize(("statement", "code"), [("pass", 120), ("sys.exit(3)", 3)])
def test_output_that_cannot_be_written_is_an_error(statement: str, code: int) -> None:
    """A full device gives Python's exit code 120, unless the command failed already."""
    shell = ["sh", "-c", 'exec "$@" > /dev/full', "sh"]

    assert run(statement, prefix=shell).returncode == code


def test_threads_end_before_the_process() -> None:
    """A thread that is not a daemon completes its work."""
    found = run("""import threading, time
    def work():
        time.sleep(0.3)
        print("complete")
    threading.Thread(target=work).start()""")

    assert found.stdout == "text without a newline complete\nhandler\n"


def test_garbage_is_collected_after_many_objects() -> None:
    """Cyclic garbage does not grow without bound, and small numbers of objects start no collection."""
    found = run("""
    before = gc.get_stats()[0]["collections"]
    few = [[] for _ in range(20_000)]
    between = gc.get_stats()[0]["collections"]
    many = [[] for _ in range(200_000)]
    print(between - before, gc.get_stats()[0]["collections"] - between)""")

    assert found.stderr == ""
    first, second = map(int, found.stdout.split("newline ")[1].splitlines()[0].split())
    assert first <= 1
    assert 2 <= second <= 5
