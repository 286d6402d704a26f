"""The cost of commands in processes of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.process_cost import run_measured


def test_the_peak_is_that_of_the_command_alone(tmp_path: Path) -> None:
    """A small command that a large process starts has a small peak, and a larger one the size of its memory."""
    ballast = np.ones(40_000_000, np.uint8)
    code = "held = bytearray(b'x') * {}"
    peaks = []
    for nbytes in (1, 120_000_000):
        status, cost = run_measured([sys.executable, "-I", "-S", "-c", code.format(nbytes)], tmp_path)
        peaks.append(cost.peak_rss_bytes)
        assert status == 0
        assert cost.processor_seconds > 0
        assert cost.seconds > 0
    assert ballast.all()
    assert peaks[0] < 30_000_000
    assert 115_000_000 < peaks[1] - peaks[0] < 125_000_000


def test_children_status_output_and_variables_are_those_of_the_command(tmp_path: Path) -> None:
    """The times of children count; a command that fails or is killed has its status; it runs in its folder."""
    child = "sum(range(10**7))"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'], check=True)"
    status, cost = run_measured([sys.executable, "-c", parent], tmp_path)
    assert status == 0
    assert cost.processor_seconds > 0.1

    code = "import os, sys; print(os.environ['A'], os.getcwd()); sys.exit(3)"
    with (tmp_path / "log").open("w") as log:
        status, _ = run_measured([sys.executable, "-c", code], tmp_path, log, log, {"A": "b"})
    assert status == 3
    assert (tmp_path / "log").read_text() == f"b {tmp_path}\n"

    status, _ = run_measured([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path, subprocess.DEVNULL)
    assert status == -9
