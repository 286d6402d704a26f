"""The results of a sweep: size, quality and verdict of every cell, and the Pareto fronts, as stored in sweep.json."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Difference, Estimate
from mcpmq.evaluate.schema import Record
from mcpmq.gate import Gate, Verdict, check
from mcpmq.report import Report
from mcpmq.sweep.cells import Cell
from mcpmq.sweep.request import StepResult
from mcpmq.sweep.schedule import StepState
from mcpmq.sweep.steps import cell_folder
from mcpmq.system.durable_file import write_durably

SWEEP_FILE, PAGE_FILE = "sweep.json", "sweep.html"
Status = Literal["waiting", "queued", "running", "finished", "failed", "unsupported"]


class CellResult(Record):
    """One cell: its inputs, its state, and the results of its report.

    `reused`: it was finished before this run. `attempts`: those of this run. `gate`: None without gates.
    """

    name: str
    checkpoint: str
    recipe: str
    format: str
    calibration: str | None
    samples: int | None
    seed: int
    status: Status
    reused: bool = False
    attempts: int = 0
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    forecast_bytes: int = 0
    error: str = ""
    nbytes: int | None = None
    bits_per_weight: float | None = None
    kl_divergence: Estimate | None = None  # of the first group, in nats
    perplexity_ratio: Estimate | None = None  # likewise
    top_1_agreement: Estimate | None = None  # likewise
    on_front: bool = False  # no cell of the checkpoint is smaller and has a lower KLD
    gate: Literal["passed", "failed"] | None = None
    violated: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Recipe and format, and the draw of the calibration samples."""
        drawn = [f"{self.samples} samples, seed {self.seed}"] * bool(self.samples)
        sets = [self.calibration] if self.calibration else []
        return ", ".join([f"{self.recipe} {self.format}", *sets, *drawn])


class StepRecord(Record):
    """A step that several cells share: a quantized model, or the measurement of an original."""

    name: str
    label: str
    status: Status
    attempts: int
    seconds: float
    error: str = ""


class SweepResult(Record):
    """All cells of a sweep; `group` is the group of samples that the metrics of the cells are about."""

    schema_version: Literal[1] = 1
    name: str
    finished: bool  # no cell is waiting or running
    group: str | None
    cells: tuple[CellResult, ...]
    steps: tuple[StepRecord, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, 1 if a cell failed, 3 if all are finished and a gate is violated."""
        if any(cell.status == "failed" for cell in self.cells):
            return 1
        return 3 if any(cell.gate == "failed" for cell in self.cells) else 0

    def count(self, *statuses: Status) -> int:
        """Return the number of cells with one of these states."""
        return sum(cell.status in statuses for cell in self.cells)

    def by_checkpoint(self) -> dict[str, list[CellResult]]:
        """Return the cells of every checkpoint."""
        found: dict[str, list[CellResult]] = {}
        for cell in self.cells:
            found.setdefault(cell.checkpoint, []).append(cell)
        return found

    def write(self, out: Path) -> None:
        """Write sweep.json."""
        write_durably(out / SWEEP_FILE, self.model_dump_json(indent=1))


@dataclass(slots=True)
class Results:
    """Reads the reports of finished cells, each once, and checks them against the gates."""

    name: str
    out: Path
    cells: Sequence[Cell]
    gates: Sequence[Gate] = ()
    baseline: Report | None = None
    reused: frozenset[str] = frozenset()
    reports: dict[str, Report] = field(default_factory=dict)
    found: dict[str, CellResult] = field(default_factory=dict)  # of finished cells

    def is_finished(self, name: str) -> bool:
        """Return whether a cell has a result and a report that can be read."""
        folder = cell_folder(self.out, name)
        if StepResult.read(folder) is None:
            return False
        try:
            self.reports[name] = Report.load(folder)
        except ArtifactError:
            return False
        return True

    def collect(self, states: Mapping[str, StepState]) -> SweepResult:
        """Return the results of all cells, with the states of the steps that run or ended."""
        cells = [self._result(cell, states.get(cell.name)) for cell in self.cells]
        names = {cell.name for cell in self.cells}
        steps = tuple(
            StepRecord(
                name=state.step.name,
                label=state.step.label,
                status=state.status,
                attempts=state.attempts,
                seconds=round(state.running_seconds, 1),
                error=state.error,
            )
            for state in states.values()
            if state.step.name not in names
        )
        open_cells = any(cell.status in ("waiting", "queued", "running") for cell in cells)
        group = next((next(iter(one.original.groups)) for one in self.reports.values()), None)
        marked = tuple(mark_fronts(cells))
        return SweepResult(name=self.name, finished=not open_cells, group=group, cells=marked, steps=steps)

    def _result(self, cell: Cell, state: StepState | None) -> CellResult:
        if cell.name in self.found:
            return self.found[cell.name]
        result = _planned(cell)
        if cell.problem:
            return result.model_copy(update={"status": "unsupported", "error": cell.problem})
        if state is not None:
            seconds = round(state.running_seconds, 1) or None
            changes = {"status": state.status, "attempts": state.attempts, "error": state.error, "seconds": seconds}
            result = result.model_copy(update={**changes, "forecast_bytes": state.step.memory_nbytes})
        if cell.name not in self.reused and (state is None or state.status != "finished"):
            return result
        if not self.is_finished(cell.name):
            return result.model_copy(update={"status": "failed", "error": "its report cannot be read"})
        self.found[cell.name] = result.model_copy(update=self._measured(cell))
        return self.found[cell.name]

    def _measured(self, cell: Cell) -> dict[str, object]:
        """Return the fields of a finished cell."""
        report, step = self.reports[cell.name], StepResult.read(cell_folder(self.out, cell.name))
        assert step is not None
        [artifact] = report.artifacts
        difference = _first_difference(artifact.differences)
        verdicts = [verdict for gate in self.gates for verdict in check(report, gate, self.baseline)]
        return {
            "status": "finished",
            "reused": cell.name in self.reused,
            "nbytes": artifact.measurement.nbytes,
            "bits_per_weight": artifact.weights.bits_per_weight,
            "kl_divergence": difference and difference.kl_divergence,
            "perplexity_ratio": difference and difference.perplexity_ratio,
            "top_1_agreement": difference and difference.top_1_agreement,
            **_verdict(verdicts, has_gates=bool(self.gates)),
            **step.model_dump(),
        }


def _planned(cell: Cell) -> CellResult:
    used = cell.calibration
    return CellResult(
        name=cell.name,
        checkpoint=Path(cell.combination.checkpoint).name,
        recipe=cell.recipe.name,
        format=cell.format,
        calibration=Path(used.path).name if used else None,
        samples=used.samples if used else None,
        seed=used.seed if used else 0,
        status="waiting",
    )


def _first_difference(differences: Mapping[str, Difference]) -> Difference | None:
    return next(iter(differences.values()), None)


def _verdict(verdicts: Sequence[Verdict], *, has_gates: bool) -> dict[str, object]:
    if not has_gates:
        return {}
    violated = [str(verdict) for verdict in verdicts if verdict.status == "failed"]
    return {"gate": "failed" if violated else "passed", "violated": tuple(violated)}


def mark_fronts(cells: Sequence[CellResult]) -> Iterator[CellResult]:
    """Mark the cells on the Pareto front of size and KLD of their checkpoint."""
    for cell in cells:
        rivals = [one for one in cells if one.checkpoint == cell.checkpoint and one is not cell]
        yield cell.model_copy(update={"on_front": _is_on_front(cell, rivals)})


def _is_on_front(cell: CellResult, rivals: Sequence[CellResult]) -> bool:
    """Return whether no other cell is at least as good in both values and better in one."""
    point = _point(cell)
    others = [other for one in rivals if (other := _point(one)) is not None]
    if point is None:
        return False
    return not any(one != point and one[0] <= point[0] and one[1] <= point[1] for one in others)


def _point(cell: CellResult) -> tuple[int, float] | None:
    return None if cell.nbytes is None or cell.kl_divergence is None else (cell.nbytes, cell.kl_divergence.value)


def read_result(out: Path) -> SweepResult | None:
    """Return the result in the folder of a sweep; None without one of this version."""
    try:
        return SweepResult.model_validate_json((out / SWEEP_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
