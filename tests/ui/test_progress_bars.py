"""Progress in a terminal, and without one."""

import re
import time
from threading import Event

import pytest

from mcpmq.system.progress import begin_stages
from mcpmq.system.table import format_seconds
from mcpmq.ui.progress_bars import ProgressLines
from tests.terminal import run_in_terminal

STAGES = """
import time
from mcpmq import ui
from mcpmq.system.progress import begin_stages
progress = ui.start_progress("converting x")
begin_stage = begin_stages(progress, ["checking inputs", "quantizing"])
begin_stage()
time.sleep(0.4)
begin_stage()
for item in progress(range(3), "calibrating"):
    time.sleep(0.2)
ui.stop_progress()
"""
LOOP = """
import time
from mcpmq import ui
progress = ui.start_progress("converting x")
for outer in progress(["a", "b"], "outer work"):
    for inner in progress(range(3), "inner work"):
        time.sleep(0.2)
for item in progress(range(9), "left early"):
    break
ui.stop_progress()
print("done", list(progress("xy", "again")))
"""


def test_bars_are_drawn_and_removed() -> None:
    """Nested loops, a loop that is left early, and a loop after the end; a finished stage leaves a line."""
    printed = run_in_terminal(LOOP)

    assert "converting x" in printed
    assert "[1] outer work" in printed
    assert "inner work" in printed
    assert "2/3" in printed
    assert "[1] outer work: 2 in 1 s" in printed
    assert "done ['x', 'y']" in printed


def test_a_long_call_moves_the_display() -> None:
    """In two seconds without a loop the terminal gets output at least five times."""
    printed = run_in_terminal(
        "import time\nfrom mcpmq import ui\nui.start_progress('converting')\ntime.sleep(1)\nui.stop_progress()"
    )

    assert printed.count("converting") >= 5


def test_a_file_has_one_line_per_stage() -> None:
    """Stages are numbered, nested loops have no line, and the first line is the begin of the command."""
    lines: list[str] = []
    progress = ProgressLines(lines.append, "converting x")
    for _ in progress("ab", "outer"):
        assert list(progress("xyz", "inner")) == ["x", "y", "z"]
    assert list(progress([], "nothing")) == []
    progress.stop()

    assert lines == ["converting x", "[1] outer: 0 of 2", "[2] nothing: 0 of 0"]


def test_declared_stages_have_a_total() -> None:
    """Loops get the number of their stage; stages of a function that is a part of a command are not counted."""
    lines: list[str] = []
    progress = ProgressLines(lines.append, "converting x", heartbeat_seconds=0.02)
    begin_stage = begin_stages(progress, ["checking inputs", "quantizing", "evaluating"])
    begin_stage()
    begin_stage()
    begin_part = begin_stages(progress, ["checking samples", "calibrating"])
    begin_part()
    for one in ("checking samples", "calibrating"):
        assert list(progress("ab", one)) == ["a", "b"]
    begin_stage()
    while not any("elapsed" in line for line in lines[3:]):
        time.sleep(0.01)
    progress.stop()

    assert lines[:3] == ["converting x", "[2 of 3] checking samples: 0 of 2", "[2 of 3] calibrating: 0 of 2"]
    assert lines[-1] == "[3 of 3] evaluating, 0 s elapsed"


def test_a_terminal_shows_the_stage_beside_the_command() -> None:
    """Also while no loop runs."""
    printed = run_in_terminal(STAGES)

    assert "converting x [1 of 2] checking inputs" in printed
    assert "[2 of 2] calibrating" in printed
    assert "1/3" in printed


def test_a_file_has_a_line_at_every_interval() -> None:
    """It has finished items, elapsed and remaining time; it ends with the command."""
    lines: list[str] = []
    printed = Event()

    def write(line: str) -> None:
        lines.append(line)
        if "elapsed" in line and "left" in line:
            printed.set()

    progress = ProgressLines(write, "converting x", heartbeat_seconds=0.02)
    for number in progress(range(3), "calibrating"):
        if number:
            assert printed.wait(10)
    progress.stop()
    count = len(lines)
    time.sleep(0.06)

    assert len(lines) <= count + 1
    assert any(re.fullmatch(r"\[1\] calibrating: 1 of 3, \d+ s elapsed, about \d+ s left", line) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (185, "3:05 min"), (3723, "1:02:03 h")]
)
def test_durations_have_units(seconds: float, text: str) -> None:
    """Minutes and hours are separated by colons."""
    assert format_seconds(seconds) == text
