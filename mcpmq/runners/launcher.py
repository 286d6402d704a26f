"""Starts a fresh process for every measurement, and says what happened to it when it does not come back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict

from mcpmq.artifact import Kind
from mcpmq.errors import EngineError
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.runner import Phases
from mcpmq.runners.token_metrics import Judged
from mcpmq.runners.worker import DONE, RESULT, Task
from mcpmq.system.progress import Progress, silent

Engine = Literal["torch", "gguf", "onnx", "dequantized", "transformers"]
ENGINES: dict[Engine, tuple[str, str]] = {  # as people call it, and the package whose version counts
    "torch": ("PyTorch", "torch"),
    "gguf": ("llama.cpp, xllamacpp", "xllamacpp"),
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "dequantized": ("PyTorch", "torch"),
    "transformers": ("transformers", "transformers"),
}
ENGINE_OF: dict[Kind, Engine] = {
    "quantized": "torch",
    "gguf": "gguf",
    "onnx": "onnx",
    "gptq": "dequantized",
    "awq": "dequantized",
    "bnb": "transformers",
    "compressed-tensors": "transformers",
}
LAST_LINES = 20
NOTHING: Mapping[str, Path] = MappingProxyType({})


class Run(BaseModel):
    """What one process measured; bytes, seconds, and figures of every answer token of every sample."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: tuple[Judged, ...]
    tokens: int  # prompts and answers together
    seconds: float
    load_seconds: float
    resident_bytes_before_load: int
    peak_resident_bytes: int
    phases: Phases | None  # of a sample of median length; None where the engine runs without a cache
    notes: tuple[str, ...]


class _Failure(BaseModel):
    model_config = ConfigDict(extra="forbid")

    error: str
    hint: str


def run(
    engine: Engine,
    model: Path,
    samples: SampleFiles,
    threads: int,
    progress: Progress = silent,
    *,
    keep: Path | None = None,
    against: Mapping[str, Path] = NOTHING,
) -> Run:
    """Run every sample through the model in an engine, in a process that holds nothing else.

    `keep` is a file to write the log-probabilities of all answers to, `against` such files of other models by name.

    Raises:
        EngineError: the engine failed, was killed, gave losses that are not finite, or has another vocabulary.
    """
    label = ENGINES[engine][0]
    others = {name: str(file) for name, file in against.items()}
    task = Task(engine, str(model), str(samples.folder), threads, str(keep) if keep else None, others)
    with TemporaryDirectory(prefix="mcpmq-") as folder:
        asked, out, errors = (Path(folder) / name for name in ("task.json", RESULT, "stderr"))
        asked.write_text(json.dumps(asdict(task)))
        command = ["-P", "-m", "mcpmq.runners.worker", str(asked)]
        with errors.open("wb") as stderr, _started(command, threads, stderr) as process:
            done = _count_done(process, progress, len(samples), f"measuring in {label}")
            code = process.wait()
        if code == 0:
            return Run.model_validate_json(out.read_bytes())
        if out.is_file():
            failure = _Failure.model_validate_json(out.read_bytes())
            raise EngineError(f"{label}: {failure.error}", failure.hint)
        raise _crash(label, code, done, len(samples), errors.read_text(errors="replace"))


@contextmanager
def _started(command: list[str], threads: int, stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    # Threads that spin while they wait would steal the time that is measured.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace", env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _count_done(process: "subprocess.Popen[str]", progress: Progress, count: int, what: str) -> int:
    assert process.stdout is not None
    lines = (line for line in process.stdout if line.rstrip() == DONE)
    done = 0
    for _ in progress(range(count), what):
        if next(lines, None) is None:
            break
        done += 1
    for _ in lines:  # until it closes its output: nothing may be left in the pipe
        pass
    return done


def _crash(label: str, code: int, done: int, count: int, stderr: str) -> EngineError:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    lines = [line for line in stderr.splitlines() if line.strip()][-LAST_LINES:]
    message = "\n".join([f"{label} {how} after {done} of {count} samples", *lines])
    if code == -signal.SIGKILL:
        return EngineError(
            message, "systems do this when memory runs out; close other programs, or take a smaller model"
        )
    return EngineError(message, "measure again; if it happens again, the engine cannot run this model on this machine")
