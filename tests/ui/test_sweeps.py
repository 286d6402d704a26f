"""The live view of a sweep: running steps first, within the width and height of a terminal."""

from pathlib import Path
from time import monotonic

from rich.console import Console

from mcpmq.sweep.request import LOG_FILE
from mcpmq.sweep.schedule import StepState
from mcpmq.ui.sweeps import render_states
from tests.sweep.test_results import make_cell, make_result
from tests.sweep.test_schedule import make_step


def test_running_cells_are_first_with_their_last_output(tmp_path: Path) -> None:
    """A terminal of few lines shows the counts and the running cells, and the number of the others."""
    cells = [make_cell(f"c{number}") for number in range(20)]
    cells += [make_cell("run", status="running"), make_cell("done", 9_000_000, 0.25)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOG_FILE).write_text("begin\n[2 of 3] quantizing: 3 of 28, 31 s elapsed\n")
    states = {"run": StepState(make_step("run", folder=tmp_path), "running", 1, begin=monotonic())}
    console = Console(width=100, file=None)

    with console.capture() as captured:
        console.print(render_states(make_result(*cells), states, 87, 5))
    lines = captured.get().splitlines()

    assert lines[0] == "sweep night: 22 cells, 1 finished, 1 running"
    assert lines[1].startswith("    run model calibrated-quality-int4 gguf")
    assert lines[1].endswith("gguf, 0 s: [2 of 3] quantizing: 3 of 28, 31 s ela")  # 87 cells
    assert lines[-1] == "and 18 more"
    assert len(lines) == 6


def test_finished_cells_have_size_and_divergence() -> None:
    """A terminal with enough lines lists every cell."""
    console = Console(width=100)

    with console.capture() as captured:
        console.print(render_states(make_result(make_cell("a", 9_000_000, 0.25), make_cell("b")), {}, 100, 40))

    assert "   done model calibrated-quality-int4 gguf, 9.0 MB, KLD 0.2500" in captured.get()
    assert "waiting model calibrated-quality-int4 gguf" in captured.get()
