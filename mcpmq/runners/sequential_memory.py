"""Vision first, then language: what sees is loaded, used and released before what reads is loaded, as on a small phone.

    python -m mcpmq.runners.sequential_memory TASK

TASK is a JSON file with the fields of `Task`; figures or the error go beside it. Runs in a process of its own, since
what is resident at most is what is measured.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError, McpmqError
from mcpmq.families.family import Inputs
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.runner import Logits, Runner
from mcpmq.runners.worker import RESULT, resident_bytes

Features = list[NDArray[np.float32]]  # of every slice in order, [tokens, hidden]


class Engine(Protocol):
    """What a module of this room has whose engine can do one thing after the other."""

    def see_all(self, path: Path, threads: int, samples: Sequence[Inputs]) -> Features:
        """Load what sees, look at every slice, and free its memory."""

    def open_reader(self, path: Path, threads: int, seen: Features) -> Runner:
        """Load what reads; slices are recalled in their order."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the process is to do; paths as text."""

    engine: str
    model: str
    samples: str
    threads: int


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes of the process in memory at most: while it saw, and in all."""

    seeing_bytes: int
    resident_bytes: int


def measure_in_turn(engine: str, model: Path, samples: SampleFiles, threads: int) -> Peaks:
    """Run the samples that take most memory, one thing after the other, in a fresh process.

    Raises:
        EngineError: the engine failed.
    """
    with TemporaryDirectory(prefix="mcpmq-") as folder:
        asked, out = Path(folder) / "task.json", Path(folder) / RESULT
        asked.write_text(json.dumps(asdict(Task(engine, str(model), str(samples.folder), threads))))
        command = [sys.executable, "-P", "-m", "mcpmq.runners.sequential_memory", str(asked)]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if not out.is_file():
            raise EngineError(f"{engine}: ended with code {ended.returncode} while vision and language took turns")
        result = json.loads(out.read_bytes())
    if "error" in result:
        raise EngineError(f"{engine}: {result['error']}", result["hint"])
    return Peaks(**result)


def heaviest(samples: Iterable[Inputs]) -> list[Inputs]:
    """The sample of most tokens, that of most slices and that of the largest slice: nothing takes more memory."""
    every = list(samples)
    sizes = (lambda one: len(one.tokens), lambda one: len(one.slices), lambda one: max(map(len, one.slices), default=0))
    found = {one.id: one for one in (max(every, key=size) for size in sizes)}
    return list(found.values())


def main(file: str) -> int:
    """Measure, and write the figures, or the error for the user, beside the task; 0 if there was none."""
    task = Task(**json.loads(Path(file).read_bytes()))
    try:
        result: dict[str, Any] = asdict(_measure(task))
    except McpmqError as error:
        result = {"error": str(error), "hint": error.hint}
    Path(file).with_name(RESULT).write_text(json.dumps(result))
    return int("error" in result)


def _measure(task: Task) -> Peaks:
    engine = cast(Engine, import_module(f"mcpmq.runners.{task.engine}"))
    samples = heaviest(SampleFiles(Path(task.samples)))
    seen = engine.see_all(Path(task.model), task.threads, samples)
    seeing = resident_bytes("VmHWM")
    runner = engine.open_reader(Path(task.model), task.threads, seen)
    for _ in runner.run(samples, _drain):
        pass
    return Peaks(seeing, resident_bytes("VmHWM"))


def _drain(_: Inputs, rows: Iterable[Logits]) -> int:
    return sum(1 for _ in rows)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
