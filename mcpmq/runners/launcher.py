"""Start a worker process for each measurement and report why it failed."""

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
from typing import IO

from pydantic import BaseModel, ConfigDict

from mcpmq.errors import EngineError
from mcpmq.formats.format import Engine
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.runner import PhaseTimings
from mcpmq.runners.token_metrics import TokenResults
from mcpmq.runners.worker import RESULT_FILE, SAMPLE_DONE, Mode, Task
from mcpmq.system.progress import Progress, silent

ENGINES: dict[Engine, tuple[str, str]] = {  # display name, and the package whose version is reported
    "torch": ("PyTorch", "torch"),
    "gguf": ("llama.cpp, xllamacpp", "xllamacpp"),
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "dequantized": ("PyTorch", "torch"),
    "transformers": ("transformers", "transformers"),
}
MAX_STDERR_LINES = 20
NO_REFERENCES: Mapping[str, Path] = MappingProxyType({})


class RunResult(BaseModel):
    """Measurements of one worker process, with the metrics of every answer token of every sample."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: tuple[TokenResults, ...]
    tokens: int  # prompts and answers together
    seconds: float
    load_seconds: float
    baseline_rss_bytes: int
    peak_rss_bytes: int
    phases: PhaseTimings | None  # of the sample of median length; None for an engine without a KV cache
    notes: tuple[str, ...]


class PeakMemory(BaseModel):
    """Peak resident memory of a process that frees the vision encoder before it loads the language model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vision_rss_bytes: int  # until the vision encoder was freed
    total_rss_bytes: int


class _Failure(BaseModel):
    model_config = ConfigDict(extra="forbid")

    error: str
    hint: str


def run_engine(
    engine: Engine,
    model: Path,
    samples: InputsStore,
    threads: int,
    progress: Progress = silent,
    *,
    save_logprobs: Path | None = None,
    references: Mapping[str, Path] = NO_REFERENCES,
) -> RunResult:
    """Run every sample through the model in a worker process that holds nothing else.

    The log-probabilities of all answers are written to `save_logprobs` and compared with those in the files of
    `references`, by model name.

    Raises:
        EngineError: the engine failed, was killed, returned non-finite losses, or has another vocabulary.
    """
    files = {name: str(file) for name, file in references.items()}
    saved = str(save_logprobs) if save_logprobs else None
    task = Task("measure", engine, str(model), str(samples.folder), threads, saved, files)
    return RunResult.model_validate_json(_run_worker(task, ENGINES[engine][0], len(samples), progress))


def measure_sequential_peak(engine: Engine, model: Path, samples: InputsStore, threads: int) -> PeakMemory:
    """Run the samples that need the most memory, with the vision encoder freed before the language model is loaded.

    Raises:
        EngineError: the engine failed.
    """
    task = Task("sequential-memory", engine, str(model), str(samples.folder), threads)
    return PeakMemory.model_validate_json(_run_worker(task, ENGINES[engine][0], 0, silent))


def _run_worker(task: Task, label: str, samples: int, progress: Progress) -> bytes:
    """Return the JSON result of a task whose worker reports `samples` finished samples."""
    with TemporaryDirectory(prefix="mcpmq-") as folder:
        task_file, result, errors = (Path(folder) / name for name in ("task.json", RESULT_FILE, "stderr"))
        task_file.write_text(json.dumps(asdict(task)))
        command = ["-P", "-m", "mcpmq.runners.worker", str(task_file)]
        with errors.open("wb") as stderr, _started(command, task.threads, stderr) as process:
            done = _count_done(process, progress, samples, f"measuring in {label}")
            code = process.wait()
        if code == 0:
            return result.read_bytes()
        if result.is_file():
            failure = _Failure.model_validate_json(result.read_bytes())
            raise EngineError(f"{label}: {failure.error}", failure.hint)
        stage = _stage(task.mode, done, samples)
        raise _crash(f"{label} {_exit(code)} {stage}", code, errors.read_text(errors="replace"))


@contextmanager
def _started(command: list[str], threads: int, stderr: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    # Threads that spin while they wait would add to the measured time.
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


def _count_done(process: "subprocess.Popen[str]", progress: Progress, count: int, description: str) -> int:
    assert process.stdout is not None
    lines = (line for line in process.stdout if line.rstrip() == SAMPLE_DONE)
    done = 0
    for _ in progress(range(count), description):
        if next(lines, None) is None:
            break
        done += 1
    for _ in lines:  # drain the pipe until the worker closes it
        pass
    return done


def _exit(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _stage(mode: Mode, done: int, samples: int) -> str:
    return f"after {done} of {samples} samples" if mode == "measure" else "in the sequential memory measurement"


def _crash(message: str, code: int, stderr: str) -> EngineError:
    last_lines = [line for line in stderr.splitlines() if line.strip()][-MAX_STDERR_LINES:]
    hint = "measure again; if it fails again, the engine cannot run this model on this machine"
    if code == -signal.SIGKILL:
        hint = "the system probably ran out of memory; close other programs or use a smaller model"
    return EngineError("\n".join([message, *last_lines]), hint)
