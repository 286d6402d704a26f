"""What runs inside the fresh process of a measurement: one engine, one model, and nothing else in memory.

    python -m mcpmq.runners.worker TASK

TASK is a JSON file with the fields of `Task`. Imports no more than the engine needs, since what is resident
is what is measured.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from mcpmq.errors import McpmqError
from mcpmq.families.family import Inputs
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.runner import AnswersByToken, OpenRunner
from mcpmq.runners.token_metrics import TokenJudge

DONE = "mcpmq: one more sample"
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Task:
    """What a measuring process is to do; paths as text."""

    engine: str
    model: str
    samples: str
    threads: int
    keep: str | None  # file to write the log-probabilities of all answers to
    against: dict[str, str]  # files to compare with, by the name of the model that wrote them


def main(file: str) -> int:
    """Measure, and write the figures, or the error for the user, beside the task; 0 if there was none."""
    task = Task(**json.loads(Path(file).read_bytes()))
    try:
        result = _measure(task)
    except McpmqError as error:
        result = {"error": str(error), "hint": error.hint}
    Path(file).with_name(RESULT).write_text(json.dumps(result))
    return int("error" in result)


def _measure(task: Task) -> dict[str, Any]:
    samples, answers = SampleFiles(Path(task.samples)), []
    against = {name: Path(path) for name, path in task.against.items()}
    judge = TokenJudge(samples, Path(task.keep) if task.keep else None, against)
    started = time.perf_counter()
    open_runner = cast(OpenRunner, import_module(f"mcpmq.runners.{task.engine}").open_runner)
    before = resident_bytes("VmRSS")
    runner = open_runner(Path(task.model), task.threads)
    loaded = time.perf_counter()
    for judged in runner.run(samples, judge):
        answers.append(asdict(judged))
        print(DONE, flush=True)  # noqa: T201 - the parent counts these lines
    seconds = time.perf_counter() - loaded - judge.seconds
    judge.close()
    peak = resident_bytes("VmHWM")
    return {
        "answers": answers,
        "tokens": sum(len(sample.tokens) for sample in samples),
        "seconds": seconds,
        "load_seconds": loaded - started,
        "resident_bytes_before_load": before,
        "peak_resident_bytes": peak,
        "phases": _phases(runner, samples),
        "notes": list(runner.notes),
    }


def _phases(runner: Any, samples: SampleFiles) -> dict[str, Any] | None:
    """None where nothing was asked, as when a model is only loaded, or the engine does not tell."""
    return asdict(runner.phases(_typical(samples))) if len(samples) and isinstance(runner, AnswersByToken) else None


def _typical(samples: Sequence[Inputs]) -> Inputs:
    """Of the samples with an image, or of all if none has one, the one of median length."""
    seeing = [sample for sample in samples if sample.slices]
    by_length = sorted(seeing or samples, key=lambda sample: len(sample.tokens))
    return by_length[len(by_length) // 2]


def resident_bytes(field: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`) or at most so far (`VmHWM`).

    Linux tells both in /proc/self/status; elsewhere psutil and getrusage do.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(found.split()[1]) * 1024
    import psutil

    memory = psutil.Process().memory_info()
    if field == "VmRSS":
        return int(memory.rss)
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
