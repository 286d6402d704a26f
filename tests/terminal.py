"""Programs in a pretended terminal, for tests of what is drawn there."""

import os
import pty
import subprocess
import sys


def in_terminal(code: str, **environment: str) -> str:
    """What a program writes into a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    variables = {"TERM": "xterm", "COLUMNS": "80", **environment}
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=kept | variables)
    os.close(theirs)
    written = bytearray()
    try:
        while piece := os.read(ours, 4096):
            written += piece
    except OSError:  # how a pseudo-terminal says that the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 0, written
    return written.decode()
