"""Show a sweep while it runs: all cells in a terminal, and a line for every change of a state elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from mcpmq.system.escaping import escape_controls
from mcpmq.system.table import format_seconds
from mcpmq.ui.terminal import is_quiet, plain_console, print_notice, print_table, stop_progress

if TYPE_CHECKING:  # --help and errors import no library
    from mcpmq.sweep import SweepResult
    from mcpmq.sweep.results import CellResult
    from mcpmq.sweep.schedule import StepState

    States = Mapping[str, StepState]
    Show = Callable[[SweepResult, States], None]

OTHER_LINES = 6  # of the terminal: titles, counts and the shell
SYMBOLS = {"finished": "done", "failed": "FAILED", "running": "run", "queued": "queued", "unsupported": "-"}


def print_sweep(result: "SweepResult", *, as_json: bool = False) -> None:
    """Print the table of a sweep, or its JSON."""
    from mcpmq.sweep.table import sweep_table

    print_table(sweep_table(result), result.model_dump(mode="json"), as_json=as_json)


@contextmanager
def sweep_view() -> Iterator["Show"]:
    """Yield a function that shows the states of a sweep on stderr: a live list, lines in a pipe, nothing if quiet."""
    console = plain_console(stderr=True)
    if is_quiet():
        yield lambda result, states: None
    elif console.is_terminal:
        with _live_view(console) as show:
            yield show
    else:
        yield _LineView().update


@contextmanager
def _live_view(console: Console) -> Iterator["Show"]:
    live = Live(console=console, transient=True, auto_refresh=False)

    def show(result: "SweepResult", states: "States") -> None:
        if not live.is_started:
            stop_progress()
            live.start()
        live.update(render_states(result, states, console.width, console.height - OTHER_LINES), refresh=True)

    try:
        yield show
    finally:
        live.stop()


def render_states(result: "SweepResult", states: "States", width: int, height: int) -> RenderableType:
    """Return the counts and a line for every step; if they do not fit, running steps are first and others are counted.

    `width` and `height` are those of the list in cells and lines.
    """
    lines = [(states[one.name], one.label) for one in result.steps if one.status != "finished"]
    running = [_step_line(state, label) for state, label in lines if state.status == "running"]
    cells = sorted(result.cells, key=lambda one: _order(one.status))
    shown = [*running, *(_cell_line(cell, states.get(cell.name)) for cell in cells)]
    hidden = len(shown) - height
    if hidden > 0:
        shown = [*shown[: height - 1], f"and {hidden + 1} more"]
    return Group(*(Text(escape_controls(one)[:width], no_wrap=True) for one in (_counts(result), *shown)))


def _order(status: str) -> int:
    return ("running", "failed", "queued", "waiting", "finished", "unsupported").index(status)


def _counts(result: "SweepResult") -> str:
    counted = [f"{result.count(one)} {one}" for one in ("finished", "running", "failed") if result.count(one)]
    return f"sweep {result.name}: {len(result.cells)} cells" + "".join(f", {one}" for one in counted)


def _step_line(state: "StepState", label: str) -> str:
    from mcpmq.sweep.process import last_line

    text = f"{SYMBOLS.get(state.status, state.status):>7} {label}"
    if state.status == "running":
        return f"{text}, {format_seconds(state.running_seconds)}: {last_line(state.step.folder)}"
    return text


def _cell_line(cell: "CellResult", state: "StepState | None") -> str:
    label = f"{cell.checkpoint} {cell.label}"
    if state is not None and cell.status != "finished":
        return _step_line(state, label) + (f": {cell.error}" if cell.error and cell.status == "failed" else "")
    kld = f", KLD {cell.kl_divergence.value:.4f}" if cell.kl_divergence else ""
    size = f", {cell.nbytes / 1e6:,.1f} MB{kld}" if cell.nbytes else ""
    return f"{SYMBOLS.get(cell.status, cell.status):>7} {label}{size}"


class _LineView:
    """Prints a line when a step begins, succeeds or fails."""

    def __init__(self) -> None:
        self._printed: dict[str, tuple[str, int]] = {}  # phase and attempts

    def update(self, result: "SweepResult", states: "States") -> None:
        """Print the changes since the last call."""
        stop_progress()
        labels = {cell.name: f"{cell.checkpoint} {cell.label}" for cell in result.cells}
        for name, state in states.items():
            phase = "over" if state.is_over else "running" if state.status == "running" else "waiting"
            if self._printed.get(name, ("waiting", 0)) != (phase, state.attempts):
                self._print(result, labels.get(name, state.step.label), state)
            self._printed[name] = phase, state.attempts

    def _print(self, result: "SweepResult", label: str, state: "StepState") -> None:
        if state.status in ("waiting", "queued"):
            print_notice(f"failed, trying again: {label}: {state.error}")
        elif state.status == "running":
            print_notice(f"begun: {label}")
        else:
            over = f"{result.count('finished', 'failed')} of {len(result.cells) - result.count('unsupported')} cells"
            reason = f": {state.error}" if state.error else f", {format_seconds(state.seconds)}"
            print_notice(f"{state.status}: {label}{reason} ({over})")


def print_sweep_paths(out: Path) -> None:
    """Print the page of a sweep and its JSON."""
    print_notice(f"page: {out / 'sweep.html'}")
    print_notice(f"results: {out / 'sweep.json'}; the artifact and the report of a cell are in {out / 'cells'}")
