"""The steps of a sweep: cells, and the quantized models and original measurements that they share."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcpmq.sweep.cells import Cell, runnable
from mcpmq.sweep.request import StepRequest

CELLS, SHARED, MODELS, CACHE = "cells", "shared", "quantized", "cache"


@dataclass(frozen=True, slots=True)
class Step:
    """One process of a sweep.

    folder: of its request, log and result. requires: the names of steps that succeed before it begins.
    after: the names of steps that are over before it begins.
    adaptive: whether the process uses less memory if less is free.
    """

    name: str
    label: str
    request: StepRequest
    folder: Path
    memory_nbytes: int
    requires: tuple[str, ...] = ()
    adaptive: bool = False
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepOptions:
    """Settings that all steps of a sweep share."""

    threads: int
    device: str | None = None
    cache: Path | None = None  # for the measurements of originals; None for that of the user
    shares_files: bool = True  # all steps have the same folders


def make_steps(cells: Sequence[Cell], finished: Collection[str], out: Path, options: StepOptions) -> list[Step]:
    """Return the steps of the cells that are not finished, each after the steps that it requires.

    A quantized model is a step of its own if several unfinished cells share it, or if it needs calibration; a
    measurement of an original if several unfinished cells use it.
    """
    pending = [cell for cell in runnable(cells) if cell.name not in finished]
    if not options.shares_files:
        return _independent_steps(pending, out, options)
    originals = Counter(_original_name(cell) for cell in pending)
    models = Counter(cell.quantized for cell in pending)
    steps: dict[str, Step] = {}
    for cell in pending:
        requires = []
        if originals[name := _original_name(cell)] > 1:
            steps.setdefault(name, _original_step(cell, name, out, options))
            requires.append(name)
        if models[cell.quantized] > 1 or cell.recipe.needs_calibration:
            step = _quantize_step(cell, out, options)
            steps.setdefault(step.name, step)
            requires.append(step.name)
        steps[cell.name] = _cell_step(cell, out, options, tuple(requires))
    return list(steps.values())


def _independent_steps(cells: Sequence[Cell], out: Path, options: StepOptions) -> list[Step]:
    """Return steps that need no file of another one; cells of one quantized model run one after the other.

    A node that has no quantized model for its cell makes it, and those that run later on this node use it.
    """
    steps, previous = list[Step](), dict[str, str]()
    for cell in cells:
        step = _cell_step(cell, out, options, (f"quantize-{cell.quantized}",))
        memory = max(step.memory_nbytes, cell.memory.quantize, cell.memory.original)
        after = (previous[cell.quantized],) if cell.quantized in previous else ()
        steps.append(replace(step, memory_nbytes=memory, requires=(), adaptive=False, after=after))
        previous[cell.quantized] = cell.name
    return steps


def cell_folder(out: Path, name: str) -> Path:
    """Return the folder of a cell: its request, log, artifact and report."""
    return out / CELLS / name


def _original_name(cell: Cell) -> str:
    return f"original-{cell.checkpoint_sha256[:8]}-{cell.evaluation.sha256[:8]}"


def _original_step(cell: Cell, name: str, out: Path, options: StepOptions) -> Step:
    request = _request(cell, options).model_copy(update={"kind": "original", "recipe": None, "calibration": None})
    label = f"original {Path(cell.combination.checkpoint).name}"
    return Step(name, label, request, out / SHARED / name, cell.memory.original, adaptive=True)


def _quantize_step(cell: Cell, out: Path, options: StepOptions) -> Step:
    request = _request(cell, options).model_copy(
        update={"kind": "quantize", "quantized": str(out / MODELS / cell.quantized)}
    )
    name = f"quantize-{cell.quantized}"
    checkpoint = Path(cell.combination.checkpoint).name
    label = f"quantize {checkpoint} {cell.label.replace(f' {cell.format}', '', 1)}"
    return Step(name, label, request, out / SHARED / name, cell.memory.quantize)


def _cell_step(cell: Cell, out: Path, options: StepOptions, requires: tuple[str, ...]) -> Step:
    shares = any(name.startswith("quantize-") for name in requires)
    changes = {"format": cell.format, "quantized": str(out / MODELS / cell.quantized) if shares else None}
    request, memory = _request(cell, options).model_copy(update=changes), cell.memory
    written = memory.export if shares else memory.one_pass
    measured = max(memory.engine, 0 if any(name.startswith("original-") for name in requires) else memory.original)
    adaptive = measured > written and measured == memory.original
    nbytes = max(written, measured)
    return Step(cell.name, cell.label, request, cell_folder(out, cell.name), nbytes, requires, adaptive)


def _request(cell: Cell, options: StepOptions) -> StepRequest:
    return StepRequest(
        kind="cell",
        checkpoint=cell.combination.checkpoint,
        checkpoint_sha256=cell.checkpoint_sha256,
        recipe=cell.recipe.to_dict(),
        calibration=cell.calibration,
        evaluation=cell.evaluation,
        cache=str(options.cache) if options.cache else None,
        threads=options.threads,
        device=options.device,
    )
