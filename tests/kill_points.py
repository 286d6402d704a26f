"""Run writing commands in processes that SIGKILL ends before one operation of the file system.

`python -m tests.kill_points COMMAND CHECKPOINT SET FOLDER SEED COUNT` prints the results as JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import OutputError
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe

OPERATIONS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "ftruncate"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (shutil, "copyfile"),
)
Work = Callable[[Path], object]


def count_operations(work: Work, out: Path) -> int:
    """Return the number of operations of `work(out)`."""
    reader, writer = os.pipe()
    status = _in_child(work, out, None, writer)
    assert status == 0, status
    os.close(writer)
    with open(reader) as stream:  # noqa: PTH123
        return int(stream.read())


def run_killed(work: Work, out: Path, at: int) -> None:
    """Run `work(out)` in a process that is killed before its operation number `at`, from 0."""
    status = _in_child(work, out, at, None)
    assert os.WIFSIGNALED(status), status
    assert os.WTERMSIG(status) == signal.SIGKILL


def _in_child(work: Work, out: Path, kill_at: int | None, result: int | None) -> int:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        with _counted(kill_at) as count:
            work(out)
        if result is not None:
            os.write(result, str(len(count)).encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@contextmanager
def _counted(kill_at: int | None) -> Iterator[list[str]]:
    calls: list[str] = []
    for owner, name in OPERATIONS:
        setattr(owner, name, _count(getattr(owner, name), name, calls, kill_at))
    yield calls


def _count(function: Any, name: str, calls: list[str], kill_at: int | None) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(name)
        return function(*args, **kwargs)

    return counted


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files by relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if not file.is_dir()}


def _works(command: str, checkpoint: Path, samples: Path, folder: Path) -> tuple[Work, Work]:
    """Return the work of a command, and the same with other arguments."""
    source, used = Checkpoint.open(checkpoint), SampleSet.open(samples)
    if command == "quantize":
        plans = [make_plan(source, Recipe.load(name)) for name in ("phone-int4", "calibrated-int4")]
        return lambda out: quantize(plans[0], out), lambda out: quantize(plans[1], out, used)
    if command == "calibrate":
        plans = [make_plan(source, Recipe.load(name)) for name in ("calibrated-int4", "phone-int4")]
        return lambda out: quantize(plans[0], out, used), lambda out: quantize(plans[1], out)
    if command == "export":
        models = [quantize(make_plan(source, Recipe.load(name)), folder / name) for name in ("phone-int4", "full")]
        models = [QuantizedModel.open(model.path) for model in models]
        return lambda out: export(models[0], "gguf", out), lambda out: export(models[1], "gguf", out)
    return lambda out: write_imatrix(source, used, out), lambda out: write_imatrix(source, used, out)


def try_kills(command: str, checkpoint: Path, samples: Path, folder: Path, points: list[int] | int, seed: int) -> Any:
    """Kill a command at points, or at a number of random points; run it with other arguments, then again.

    Returns the number of operations, and for every point: whether the output existed after the kill; the error of
    the run with other arguments, if any; whether the bytes of the last run equal those of an uninterrupted run; and
    other files that are left.
    """
    work, other = _works(command, checkpoint, samples, folder)
    total = count_operations(work, folder / "whole")
    whole = read_files(folder / "whole")
    chosen = points if isinstance(points, list) else sorted(random.Random(seed).sample(range(total), points))
    return {"operations": total, "kills": [_try(work, other, folder / "runs" / str(at), at, whole) for at in chosen]}


def _try(work: Work, other: Work, folder: Path, at: int, whole: dict[str, bytes]) -> dict[str, Any]:
    out = folder / "out"
    run_killed(work, out, at)
    result: dict[str, Any] = {"at": at, "existed": out.exists(), "other": None}
    unfinished = {name: text for name, text in read_files(folder).items() if not name.endswith(".lock")}
    if unfinished and (out.exists() or (folder / ".out.partial" / "request.json").exists()):
        try:
            other(out)
        except OutputError as error:
            result["other"] = str(error)
    if not (command_is_done := out.exists() and read_files(out) == whole):
        work(out)
    result["same"] = command_is_done or read_files(out) == whole
    result["left"] = sorted(path.name for path in folder.iterdir() if path != out and not path.name.endswith(".lock"))
    shutil.rmtree(folder)
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)  # a forked process has no threads of OpenMP, and would wait for them
    name, given, images, place, number, amount = sys.argv[1:]
    sys.stdout.write(json.dumps(try_kills(name, Path(given), Path(images), Path(place), int(amount), int(number))))
