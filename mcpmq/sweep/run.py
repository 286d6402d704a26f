"""Run a sweep: decide its cells, run the steps of those that are not finished, and write results and page meanwhile."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil

from mcpmq.errors import OutputError
from mcpmq.gate import Gate
from mcpmq.report import Report
from mcpmq.sweep.cells import decide_cells, runnable
from mcpmq.sweep.page import write_page
from mcpmq.sweep.pool import LocalPool, Pool
from mcpmq.sweep.ray_pool import RayPool, Store
from mcpmq.sweep.results import SWEEP_FILE, Results, SweepResult
from mcpmq.sweep.schedule import StepState, run_steps
from mcpmq.sweep.steps import CACHE, CELLS, MODELS, SHARED, StepOptions, make_steps
from mcpmq.sweep.sweep_file import SweepFile
from mcpmq.system.output import check_folder, lock_folder
from mcpmq.system.progress import Notify, Progress, ignore_notice, silent

MEMORY_FRACTION = 0.9  # of the available memory that processes may use together
WRITE_SECONDS = 5.0  # between two pages without a change of a state
States = Mapping[str, StepState]
Show = Callable[[SweepResult, States], None]


def ignore(result: SweepResult, states: States) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Options of a run of a sweep; they change no result.

    jobs: processes at a time. threads: of each process; None for the cores of the machine divided by `jobs`.
    memory_limit: bytes that all processes may use together; None for most of the available memory.
    retries: number of runs of a failed step after the first. device: of calibrations; None selects one.
    ray: address of a Ray cluster whose nodes run the steps, instead of this machine.
    store: with `shared` all nodes have the folder of the sweep, with `returned` the reports are copied to it.
    """

    jobs: int = 1
    threads: int | None = None
    memory_limit: int | None = None
    retries: int = 1
    device: str | None = None
    ray: str | None = None
    store: Store = "shared"

    def open_pool(self) -> AbstractContextManager[Pool]:
        """Return the context of the pool of processes."""
        if self.ray:
            return RayPool.open(self.ray, self.store)
        limit = self.memory_limit or int(MEMORY_FRACTION * psutil.virtual_memory().available)
        return LocalPool.open(self.jobs, limit)

    def step_options(self, out: Path) -> StepOptions:
        """Return the options of every step; on a cluster a step has one thread by default."""
        threads = self.threads or (1 if self.ray else max(1, (os.cpu_count() or 1) // self.jobs))
        cache = out / CACHE if self.ray and self.store == "shared" else None
        return StepOptions(threads, self.device, cache, not self.ray or self.store == "shared")


def sweep(
    file: str | Path,
    out: str | Path,
    options: SweepOptions | None = None,
    progress: Progress = silent,
    show: Show = ignore,
    notify: Notify = ignore_notice,
) -> SweepResult:
    """Convert and measure every cell of a sweep file into `out`, and write `sweep.json` and `sweep.html` there.

    Finished cells are not repeated, killed ones resume, and failed ones are run again. `progress` is that of planning;
    `show` gets the results and the states of all steps when a state changes, and twice a second; `notify` gets the
    warnings about sample sets.

    Raises:
        SweepError: the file is not valid, or no cell can be run.
        OutputError: `out` is not empty and not the folder of a sweep, or another process writes it.
        McpmqError: an input of the sweep is not valid; raised before a weight is read.
    """
    file, out, options = Path(file), Path(out).absolute(), options or SweepOptions()
    loaded = SweepFile.load(file)
    gates = [Gate.load(Path(one)) for one in loaded.gates]
    baseline = Report.load(loaded.baseline) if loaded.baseline else None
    _check_out(out)
    cells = decide_cells(loaded, progress, options.device, notify)
    results = Results(file.stem, out, cells, gates, baseline)
    with lock_folder(out):
        results.reused = frozenset(cell.name for cell in runnable(cells) if results.is_finished(cell.name))
        steps = make_steps(cells, results.reused, out, options.step_options(out))
        writer = _Writer(results, show)
        with options.open_pool() as pool:
            states = run_steps(steps, pool, options.retries, writer.update)
        return writer.write(states)


@dataclass(slots=True)
class _Writer:
    """Writes results and page when the state of a step changes, and every few seconds."""

    results: Results
    show: Show
    written: tuple[object, ...] = ()
    time: float = 0.0

    def update(self, states: States) -> None:
        key = tuple((state.status, state.attempts) for state in states.values())
        if key != self.written or time.monotonic() - self.time > WRITE_SECONDS:
            self.written, self.time = key, time.monotonic()
            self.write(states)
        self.show(self.results.collect(states), states)

    def write(self, states: States) -> SweepResult:
        """Write `sweep.json` and the page."""
        result = self.results.collect(states)
        result.write(self.results.out)
        write_page(result, self.results.out)
        return result


def _check_out(out: Path) -> None:
    if not check_folder(out):
        return
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if names and not names & {SWEEP_FILE, CELLS, SHARED, MODELS}:
        raise OutputError(
            f"`{out}` is not empty and is not the folder of a sweep: `{min(names)}`", "give another folder"
        )
