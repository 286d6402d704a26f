"""The table of a sweep: a row for every cell below its checkpoint, and the spread over draws of calibration samples."""

import math
from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from mcpmq.report.numbers import megabyte_cells, nats_cells
from mcpmq.report.tables import GROUP_LABELS
from mcpmq.sweep.results import CellResult, SweepResult
from mcpmq.system.table import Row, Table

COLUMNS = ("size, MB", "bits", "KLD, nats", "s", "result")
EMPTY = ("",) * len(COLUMNS)
FRONT = " *"


def sweep_table(result: SweepResult) -> Table:
    """Return size, quality, time and result of every cell."""
    over, total = result.count("finished", "failed"), len(result.cells) - result.count("unsupported")
    title = f"Sweep {result.name}: {over} of {total} cells done"
    failed = result.count("failed")
    rows = [row for row, _ in sweep_rows(result)]
    return Table(title + (f", {failed} failed" if failed else ""), COLUMNS, rows, list(_notes(result)))


def sweep_rows(result: SweepResult) -> Iterator[tuple[Row, CellResult | None]]:
    """Yield the rows of the table, each with its cell; those of checkpoints, recipes and means have none."""
    names_set = len({cell.calibration for cell in result.cells if cell.calibration}) > 1
    for checkpoint, cells in result.by_checkpoint().items():
        yield (f"{checkpoint}:", EMPTY), None
        sizes, klds = megabyte_cells([one.nbytes for one in cells]), nats_cells([one.kl_divergence for one in cells])
        texts = {cell.name: pair for cell, *pair in zip(cells, sizes, klds, strict=True)}
        for recipe in dict.fromkeys(cell.recipe for cell in cells):
            yield (recipe, EMPTY), None
            group = [cell for cell in cells if cell.recipe == recipe]
            for cell in group:
                yield (_label(cell, names_set), _cells(cell, *texts[cell.name])), cell
            yield from ((row, None) for row in _mean_rows(group, names_set))


def _label(cell: CellResult, names_set: bool) -> str:
    return f" {cell.format}{_draw(cell, names_set)}{_seed(cell)}{FRONT * cell.on_front}"


def _draw(cell: CellResult, names_set: bool) -> str:
    parts = [cell.calibration] if names_set and cell.calibration else []
    return "".join(f", {part}" for part in (*parts, *([f"{cell.samples} samples"] if cell.samples else [])))


def _seed(cell: CellResult) -> str:
    return f", seed {cell.seed}" if cell.samples else ""


def _cells(cell: CellResult, size: str, kld: str) -> list[str]:
    bits = "" if cell.bits_per_weight is None else f"{cell.bits_per_weight:.2f}"
    seconds = "" if cell.seconds is None else f"{cell.seconds:,.0f}"
    return [size, bits, kld, seconds, cell_status(cell)]


def cell_status(cell: CellResult) -> str:
    """Return the state of a cell; of a finished one the verdict of the gates, if there are any."""
    if cell.status != "finished":
        return "FAILED" if cell.status == "failed" else cell.status
    if cell.gate:
        return "passed" if cell.gate == "passed" else "VIOLATED"
    return "reused" if cell.reused else "finished"


def _mean_rows(cells: Sequence[CellResult], names_set: bool) -> Iterator[Row]:
    """Yield mean and standard deviation of KLD over the draws of a recipe in a format."""
    groups: dict[str, list[float]] = {}
    for cell in cells:
        if cell.samples and cell.kl_divergence:
            groups.setdefault(f"{cell.format}{_draw(cell, names_set)}", []).append(cell.kl_divergence.value)
    for label, values in groups.items():
        if len(values) > 1:
            spread = stdev(values)
            places = min(6, max(4, 1 - math.floor(math.log10(spread)))) if spread else 4
            cells_text = [f"{mean(values):.{places}f} s {spread:.{places}f}"]
            yield f" {label}: {len(values)} draws", ["", "", *cells_text, "", ""]


def _notes(result: SweepResult) -> Iterator[str]:
    if result.group:
        yield f"KLD: mean on {GROUP_LABELS[result.group]}; ±: half of the 95 % interval"
    if any(cell.on_front for cell in result.cells):
        yield "*: on the Pareto front: no cell of the checkpoint is smaller and has a lower KLD"
    if any(cell.calibration and cell.samples for cell in result.cells):
        yield "draws: mean of the KLD of draws of calibration samples, and s, their standard deviation"
    yield from _step_notes(result)
    for cell in result.cells:
        for text in [cell.error] if cell.error else cell.violated:
            yield f"{cell.checkpoint}, {cell.label}: {text}"


def _step_notes(result: SweepResult) -> Iterator[str]:
    for step in result.steps:
        if step.status != "waiting":
            again = f", {step.attempts} attempts" if step.attempts > 1 else ""
            yield f"{step.label}: {step.status}, {step.seconds:,.0f} s{again}"
    for cell in result.cells:
        if cell.attempts > 1:
            yield f"{cell.checkpoint}, {cell.label}: {cell.attempts} attempts"
