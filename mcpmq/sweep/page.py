"""The page of a sweep: size against quality with the Pareto front of every checkpoint, and all cells."""

from importlib.resources import files
from pathlib import Path

from mcpmq.report.charts import scatter_chart
from mcpmq.report.page import render_page
from mcpmq.report.tables import GROUP_LABELS
from mcpmq.sweep.results import PAGE_FILE, CellResult, SweepResult
from mcpmq.sweep.steps import CELLS
from mcpmq.sweep.table import sweep_rows, sweep_table
from mcpmq.system.durable_file import write_durably

REFRESH_SECONDS = 5


def write_page(result: SweepResult, out: Path) -> None:
    """Write the page; that of an unfinished sweep reloads itself."""
    write_durably(out / PAGE_FILE, render_sweep(result))


def render_sweep(result: SweepResult) -> str:
    """Render charts, states and results of all cells as HTML, with links to their reports."""
    table = sweep_table(result)
    return render_page(
        files("mcpmq.sweep").joinpath("sweep.html").read_text(encoding="utf-8"),
        title=table.title,
        result=result,
        table=table,
        links=[_link(cell) for _, cell in sweep_rows(result)],
        refresh=None if result.finished else REFRESH_SECONDS,
        group=GROUP_LABELS.get(result.group or "", ""),
        charts={name: chart for name, cells in result.by_checkpoint().items() if (chart := _chart(cells))},
        passed=result.count("finished"),
        failed=result.exit_code != 0,
    )


def _link(cell: CellResult | None) -> str | None:
    return f"{CELLS}/{cell.name}/report.html" if cell and cell.status == "finished" else None


def _chart(cells: list[CellResult]) -> tuple[str, list[tuple[str, CellResult]]] | None:
    """Return the chart of a checkpoint, and its cells with their numbers in the chart."""
    shown = [
        (cell, cell.nbytes, cell.kl_divergence)
        for cell in cells
        if cell.nbytes is not None and cell.kl_divergence is not None and cell.kl_divergence.value > 0
    ]
    numbers = [str(number) for number in range(1, len(shown) + 1)]
    front = [at for at, (cell, *_) in enumerate(shown) if cell.on_front]
    drawing = scatter_chart([(nbytes, kld) for _, nbytes, kld in shown], numbers, [front])
    return None if drawing is None else (drawing, list(zip(numbers, (cell for cell, *_ in shown), strict=True)))
