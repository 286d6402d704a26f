"""What runs inside the fresh process of a measurement: one engine, one model, and nothing else in memory.

    python -m mcpmq.runners.child ENGINE MODEL SAMPLES OUT THREADS

Imports no more than the engine needs, since what is resident is what is measured.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from mcpmq.errors import EngineError, McpmqError
from mcpmq.runners.runner import OpenRunner
from mcpmq.runners.sample_files import SampleFiles

DONE = "mcpmq: one more sample"


def main(engine: str, model: str, samples: str, out: str, threads: str) -> int:
    """Measure, and write the figures, or the error for the user, as JSON; 0 if there was none."""
    try:
        result = _measure(engine, Path(model), SampleFiles(Path(samples)), int(threads))
    except McpmqError as error:
        result = {"error": str(error), "hint": error.hint}
    Path(out).write_text(json.dumps(result))
    return int("error" in result)


def _measure(engine: str, model: Path, samples: SampleFiles, threads: int) -> dict[str, Any]:
    started = time.perf_counter()
    open_runner = cast(OpenRunner, import_module(f"mcpmq.runners.{engine}").open_runner)
    before = resident_bytes("VmRSS")
    runner = open_runner(model, threads)
    loaded = time.perf_counter()
    losses = []
    for sample, loss in zip(samples, runner.losses(samples), strict=True):
        losses.append(_checked(sample.id, loss, len(sample.tokens) - sample.answer_start).tolist())
        print(DONE, flush=True)  # noqa: T201 - the parent counts these lines
    return {
        "losses": losses,
        "tokens": sum(len(sample.tokens) for sample in samples),
        "seconds": time.perf_counter() - loaded,
        "load_seconds": loaded - started,
        "resident_bytes_before_load": before,
        "peak_resident_bytes": resident_bytes("VmHWM"),
        "notes": list(runner.notes),
    }


def _checked(sample_id: str, losses: np.ndarray[Any, Any], expected: int) -> np.ndarray[Any, Any]:
    if losses.shape != (expected,):
        raise EngineError(f"sample `{sample_id}`: {losses.shape} losses for an answer of {expected} tokens")
    if not np.isfinite(losses).all():
        raise EngineError(
            f"sample `{sample_id}`: the loss of token {int(np.argmin(np.isfinite(losses)))} is not finite",
            "the weights or activations overflow in this engine",
        )
    return losses


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
