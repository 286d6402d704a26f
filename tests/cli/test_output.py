"""Standard output that cannot be written: a full disk, a closed pipe, a closed descriptor."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["--version", "recipes phone-int4 --json", "recipes"]


def run(command: str, redirection: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell with this redirection of its output."""
    line = f"{sys.executable} -m mcpmq {command} {redirection}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="requires /dev/full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_an_error_with_a_hint(command: str) -> None:
    """Also if the output is so short that it is written at the end; without a traceback."""
    ran = run(command, "> /dev/full")

    assert ran.returncode == 1
    assert ran.stderr.startswith("error: No space left on device\n\nhint: free disk space")
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("redirection", ["| true", ">&-"])
def test_a_closed_output_has_no_traceback(command: str, redirection: str) -> None:
    """A reader that ended, and a descriptor that the parent closed."""
    ran = run(command, redirection)

    assert (ran.stdout, ran.stderr) == ("", "")
    assert ran.returncode in (0, 1)
