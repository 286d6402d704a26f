"""Progress bars on a terminal."""

from tests.terminal import in_terminal

LOOP = """
import time
from mcpmq import ui
progress = ui.progress()
for outer in progress(["a", "b"], "outer work"):
    for inner in progress(range(3), "inner work"):
        time.sleep(0.12)
for item in progress(range(9), "left early"):
    break
print("done", list(progress("xy", "again")))
"""


def test_bars_are_drawn_in_a_terminal_and_go_away() -> None:
    """Loops inside loops, loops left early, and the next one after them."""
    written = in_terminal(LOOP)
    assert "outer work" in written
    assert "inner work" in written
    assert "2/3" in written
    assert "done ['x', 'y']" in written
