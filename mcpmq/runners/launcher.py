"""Start a worker process for each measurement and report why it failed."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from mcpmq.errors import EngineError
from mcpmq.formats.format import Engine
from mcpmq.runners.greedy import Budget, GreedyAnswer, answers_without_passes
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.runner import EngineOptions, PhaseTimings
from mcpmq.runners.token_metrics import TokenResults
from mcpmq.runners.worker import RESULT_FILE, SAMPLE_DONE, Mode, Task
from mcpmq.system.child_output import UnresponsiveError, output_lines
from mcpmq.system.child_process import child_process
from mcpmq.system.progress import Progress, silent
from mcpmq.system.temporary_folder import temporary_folder

ENGINES: dict[Engine, tuple[str, str]] = {  # display name, and the package whose version is reported
    "torch": ("PyTorch", "torch"),
    "gguf": ("llama.cpp, xllamacpp", "xllamacpp"),
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "dequantized": ("PyTorch", "torch"),
    "transformers": ("transformers", "transformers"),
}
MAX_STDERR_LINES = 20
MAX_IDLE_SECONDS = 60  # without output and processor time, before a worker is ended
NO_OPTIONS = EngineOptions()
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


class _GreedyAnswers(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: tuple[GreedyAnswer, ...]


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
    reference_vocabulary: Path | None = None,
    options: EngineOptions = NO_OPTIONS,
) -> RunResult:
    """Run every sample through the model in a worker process that holds nothing else.

    The log-probabilities of all answers are written to `save_logprobs` and compared with those in the files of
    `references`, by model name; `reference_vocabulary` is the file of their vocabulary if the model has a part of it.

    Raises:
        EngineError: the engine failed, was killed or did not respond, returned non-finite losses, or has another
            vocabulary.
    """
    files = {name: str(file) for name, file in references.items()}
    saved, vocabulary = (str(file) if file else None for file in (save_logprobs, reference_vocabulary))
    keywords = options.keywords()
    task = Task("measure", engine, str(model), str(samples.folder), threads, saved, files, vocabulary, options=keywords)
    return RunResult.model_validate_json(_run_worker(task, ENGINES[engine][0], len(samples), progress))


def measure_sequential_peak(
    engine: Engine, model: Path, samples: InputsStore, threads: int, options: EngineOptions = NO_OPTIONS
) -> PeakMemory:
    """Run the samples that need the most memory, with the vision encoder freed before the language model is loaded.

    Raises:
        EngineError: the engine failed or did not respond.
    """
    task = Task("sequential-memory", engine, str(model), str(samples.folder), threads, options=options.keywords())
    return PeakMemory.model_validate_json(_run_worker(task, ENGINES[engine][0], 0, silent))


def generate_answers(
    engine: Engine,
    model: Path,
    samples: InputsStore,
    predicted: Sequence[Sequence[int]],
    threads: int,
    budget: Budget,
    options: EngineOptions = NO_OPTIONS,
) -> tuple[GreedyAnswer, ...]:
    """Return the greedy answer of a model to the prompt of every sample, as `greedy_answers`.

    No worker process starts if the predictions suffice.

    Raises:
        EngineError: the engine failed or did not respond.
    """
    if (known := answers_without_passes(samples, predicted, budget)) is not None:
        return tuple(known)
    tokens, limits = [list(one) for one in predicted], (budget.tokens, budget.tokens_per_pixel)
    task = Task(
        *("greedy", engine, str(model), str(samples.folder), threads),
        predicted=tokens,
        budget=limits,
        options=options.keywords(),
    )
    return _GreedyAnswers.model_validate_json(_run_worker(task, ENGINES[engine][0], 0, silent)).answers


def _run_worker(task: Task, label: str, samples: int, progress: Progress) -> bytes:
    """Return the JSON result of a task whose worker reports `samples` finished samples."""
    with temporary_folder() as folder:
        task_file, result, errors = (folder / name for name in ("task.json", RESULT_FILE, "stderr"))
        task_file.write_text(json.dumps(asdict(task)))
        with errors.open("wb") as stderr, _started(task_file, task.threads, stderr) as process:
            done, responsive = _count_done(process, progress, samples, f"measuring in {label}")
            code = process.wait() if responsive else None
        if code == 0:
            return result.read_bytes()
        if code is not None and result.is_file():
            failure = _Failure.model_validate_json(result.read_bytes())
            raise EngineError(f"{label}: {failure.error}", failure.hint)
        stage = _stage(task.mode, done, samples)
        if code is None:
            raise _unresponsive(f"{label} did not respond {stage}")
        raise _crash(f"{label} {_exit(code)} {stage}", code, errors.read_text(errors="replace"))


def _started(task_file: Path, threads: int, stderr: IO[bytes]) -> "AbstractContextManager[subprocess.Popen[str]]":
    # Threads that spin while they wait would add to the measured time.
    settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": stderr}
    text: dict[str, Any] = {"text": True, "errors": "replace"}
    return child_process("mcpmq.runners.worker", str(task_file), env=os.environ | settings, **streams, **text)


def _count_done(process: "subprocess.Popen[str]", progress: Progress, count: int, description: str) -> tuple[int, bool]:
    """Return the number of finished samples, and whether the process ended by itself."""
    lines = (line for line in output_lines(process, MAX_IDLE_SECONDS) if line.rstrip() == SAMPLE_DONE)
    done = 0
    try:
        for _ in progress(range(count), description):
            if next(lines, None) is None:
                break
            done += 1
        for _ in lines:  # drain the pipe until the worker closes it
            pass
    except UnresponsiveError:
        return done, False
    return done, True


def _exit(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _stage(mode: Mode, done: int, samples: int) -> str:
    if mode == "measure":
        return f"after {done} of {samples} samples"
    return "in the sequential memory measurement" if mode == "sequential-memory" else "while it generated answers"


def _unresponsive(message: str) -> EngineError:
    return EngineError(
        f"{message}: the worker process used no processor time for {MAX_IDLE_SECONDS} seconds and was ended",
        "the process was stopped, or it waited for a file that the system cannot read; measure again",
    )


def _crash(message: str, code: int, stderr: str) -> EngineError:
    last_lines = [line for line in stderr.splitlines() if line.strip()][-MAX_STDERR_LINES:]
    hint = "measure again; if it fails again, the engine cannot run this model on this machine"
    if code == -signal.SIGKILL:
        hint = "the system probably ran out of memory; close other programs or use a smaller model"
    return EngineError("\n".join([message, *last_lines]), hint)
