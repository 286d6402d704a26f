"""Run a program in a pseudo-terminal, for tests of its output there."""

import os
import pty
import subprocess
import sys


def run_in_terminal(code: str, **environment: str) -> str:
    """Return the output of a Python program in a terminal of 80 columns."""
    terminal, program = pty.openpty()
    variables = {"TERM": "xterm", "COLUMNS": "80", **environment}
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=program, stderr=program, env=inherited | variables)
    os.close(program)
    output = bytearray()
    try:
        while chunk := os.read(terminal, 4096):
            output += chunk
    except OSError:  # the end of a pseudo-terminal
        pass
    finally:
        os.close(terminal)
    assert process.wait() == 0, output
    return output.decode()
