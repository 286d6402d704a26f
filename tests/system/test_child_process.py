"""Child processes end with the block, and with their parent in any way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcpmq.system.child_process import child_process


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that prints its process id and arguments, and waits."""
    code = (
        "import os, sys, time\nif __name__ == '__main__': print(os.getpid(), *sys.argv[1:], flush=True); time.sleep(60)"
    )
    (tmp_path / "waiting_module.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "waiting_module"


def test_a_child_is_a_module_with_arguments_and_ends_with_the_block(module: str) -> None:
    """The module receives its arguments; the process is killed and its pipe closed at the end of the block."""
    with child_process(module, "a", "b c", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == f"{process.pid} a b c\n"
    assert process.returncode == -signal.SIGKILL
    assert process.stdout.closed


def test_ctrl_c_in_the_terminal_does_not_end_a_child(module: str) -> None:
    """The parent receives Ctrl-C as well and ends its children after it has read their results."""
    with child_process(module, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None


@pytest.mark.parametrize("stopped", [False, True])
def test_a_child_ends_when_its_parent_is_killed(module: str, stopped: bool) -> None:
    """SIGKILL of the parent ends a running and a stopped child at once."""
    code = "import subprocess, sys\nfrom mcpmq.system.child_process import child_process\n"
    code += "with child_process(sys.argv[1], stdout=subprocess.PIPE, text=True) as process:\n"
    code += "    print(process.stdout.readline(), flush=True); process.wait()"
    parent = subprocess.Popen([sys.executable, "-c", code, module], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    if stopped:
        os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
