"""Progress bars in a terminal."""

from tests.terminal import run_in_terminal

LOOP = """
import time
from mcpmq import ui
progress = ui.progress_bars()
for outer in progress(["a", "b"], "outer work"):
    for inner in progress(range(3), "inner work"):
        time.sleep(0.12)
for item in progress(range(9), "left early"):
    break
print("done", list(progress("xy", "again")))
"""


def test_bars_are_drawn_and_removed() -> None:
    """Nested loops, a loop that is left early, and a loop after it."""
    printed = run_in_terminal(LOOP)

    assert "outer work" in printed
    assert "inner work" in printed
    assert "2/3" in printed
    assert "done ['x', 'y']" in printed
