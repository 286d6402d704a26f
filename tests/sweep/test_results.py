"""Results of a sweep: the Pareto front, the table in 80 columns, the page and the exit code."""

from html.parser import HTMLParser

import pytest

from mcpmq.evaluate import Estimate
from mcpmq.sweep.page import render_sweep
from mcpmq.sweep.results import CellResult, StepRecord, SweepResult, mark_fronts
from mcpmq.sweep.table import sweep_table
from mcpmq.ui.layout import lay_out


def make_cell(name: str, size: int | None = None, kld: float = 0.0, **changes: object) -> CellResult:
    """Return a cell that is finished if it has a size."""
    estimate = Estimate(value=kld, standard_error=0.1 * kld, low=0.8 * kld, high=1.2 * kld)
    fields: dict[str, object] = {
        "checkpoint": "model",
        "recipe": "calibrated-quality-int4",
        "format": "gguf",
        "calibration": None,
    }
    fields |= {"samples": None, "seed": 0, "status": "finished" if size else "waiting", "nbytes": size}
    fields |= {"kl_divergence": estimate if size else None, "bits_per_weight": 4.5 if size else None, "seconds": 12}
    return CellResult.model_validate({"name": name, **fields, **changes})


def make_result(*cells: CellResult, **changes: object) -> SweepResult:
    """Return a finished sweep with these cells."""
    fields = {"name": "night", "finished": True, "group": "image", "cells": tuple(mark_fronts(cells))}
    return SweepResult.model_validate(fields | changes)


def test_the_front_has_the_cells_without_a_better_one() -> None:
    """A cell that is larger and worse than another is not on it, nor a cell of equal size and higher KLD."""
    cells = [make_cell("a", 10, 0.3), make_cell("b", 20, 0.1), make_cell("c", 20, 0.2), make_cell("d", 30, 0.4)]
    other = make_cell("e", 40, 0.5, checkpoint="other")

    marked = {cell.name: cell.on_front for cell in mark_fronts([*cells, other, make_cell("f")])}

    assert marked == {"a": True, "b": True, "c": False, "d": False, "e": True, "f": False}


def test_the_exit_code_of_failed_cells_is_before_that_of_gates() -> None:
    """0 if all cells are finished or unsupported, 3 for a violated gate, 1 if a cell failed."""
    passed, violated = make_cell("a", 10, 0.3, gate="passed"), make_cell("b", 20, 0.1, gate="failed")

    assert make_result(passed, make_cell("c", status="unsupported")).exit_code == 0
    assert make_result(passed, violated).exit_code == 3
    assert make_result(passed, violated, make_cell("c", status="failed")).exit_code == 1


def test_the_table_has_80_columns_and_the_spread_over_draws() -> None:
    """Draws of a recipe have a row each and one with mean and standard deviation; errors are notes."""
    draws = [
        make_cell(str(seed), 9_000_000, 0.03 + 0.01 * seed, calibration="starter", samples=64, seed=seed)
        for seed in range(3)
    ]
    failed = make_cell("f", status="failed", format="compressed-tensors", error="the disk is full", attempts=2)
    step = StepRecord(name="s", label="original model", status="finished", attempts=2, seconds=61)
    table = sweep_table(make_result(*draws, failed, steps=(step,)))
    lines = [line.text for line in lay_out(table, 80)]
    rows = dict(table.rows)

    assert max(map(len, lines)) <= 80
    assert table.title == "Sweep night: 4 of 4 cells done, 1 failed"
    assert rows[" gguf, 64 samples, seed 0 *"][0] == "9.00"
    assert rows[" gguf, 64 samples: 3 draws"][2] == "0.0400 s 0.0100"
    assert rows[" compressed-tensors"][4] == "FAILED"
    assert "model, calibrated-quality-int4 compressed-tensors: the disk is full" in table.notes
    assert "original model: finished, 61 s, 2 attempts" in table.notes


class Links(HTMLParser):
    """Collects the targets of links and the names of elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str | None] = []
        self.names: list[str] = []
        self.refresh: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if dict(attrs).get("http-equiv") == "refresh":
            self.refresh.append(dict(attrs)["content"])


@pytest.mark.parametrize("finished", [True, False])
def test_the_page_has_charts_and_links_and_reloads_while_the_sweep_runs(finished: bool) -> None:
    """It links to the reports of finished cells, draws the front, and loads nothing; names are escaped."""
    cells = [make_cell("a", 10_000_000, 0.3), make_cell("b", 20_000_000, 0.1), make_cell("c", recipe="<b>")]
    text = render_sweep(make_result(*cells, finished=finished))
    page = Links(text)

    assert page.links == ["cells/a/report.html", "cells/b/report.html"]
    assert page.refresh == ([] if finished else ["5"])
    assert "polyline" in page.names
    assert "script" not in page.names
    assert "<b>" not in text
