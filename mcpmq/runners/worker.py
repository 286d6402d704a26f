"""Worker process that loads one model into one engine and measures it.

    python -m mcpmq.runners.worker TASK

TASK is a JSON file with the fields of `Task`; the result or the error is written beside it. The module has few imports,
because the memory of the process is part of the result.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from mcpmq.errors import McpmqError
from mcpmq.families.inputs import Inputs
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.runner import Logits, OpenRunner, SequentialEngine, SliceEmbeddings, SupportsPhases
from mcpmq.runners.token_metrics import ReferenceVocabulary, TokenMetrics

SAMPLE_DONE = "mcpmq: sample done"
RESULT_FILE = "result.json"
Mode = Literal["measure", "sequential-memory", "greedy"]


@dataclass(frozen=True, slots=True)
class Task:
    """The job of a worker process; paths as text."""

    mode: Mode
    engine: str
    model: str
    samples: str
    threads: int
    save_logprobs: str | None = None  # file to write the log-probabilities of all answers to
    references: dict[str, str] = field(default_factory=dict)  # log-probability files to compare with, by model name
    reference_vocabulary: str | None = None  # file of the vocabulary of the references, if the model has a part of it
    predicted: list[list[int]] = field(default_factory=list)  # most probable tokens of the samples to answer
    budget: tuple[float, float] = (0, 0)  # of answers, as `Budget`
    options: dict[str, Any] = field(default_factory=dict)  # more arguments of `open_runner`


def main(file: str) -> int:
    """Run the task; write the result, or the error for the user, beside it; return 0 on success, else 1."""
    task = Task(**json.loads(Path(file).read_bytes()))
    try:
        result = RUN_MODE[task.mode](task)
    except McpmqError as error:
        result = {"error": str(error), "hint": error.hint}
    Path(file).with_name(RESULT_FILE).write_text(json.dumps(result))
    return int("error" in result)


def _measure(task: Task) -> dict[str, Any]:
    samples, answers = InputsStore(Path(task.samples)), []
    references = {name: Path(path) for name, path in task.references.items()}
    vocabulary = ReferenceVocabulary.load(Path(task.reference_vocabulary)) if task.reference_vocabulary else None
    metrics = TokenMetrics(samples, Path(task.save_logprobs) if task.save_logprobs else None, references, vocabulary)
    started = time.perf_counter()
    open_runner = cast(OpenRunner, _engine_module(task).open_runner)
    baseline = rss_bytes("VmRSS")
    runner = open_runner(Path(task.model), task.threads, **task.options)
    loaded = time.perf_counter()
    for answer in runner.run(samples, metrics):
        answers.append(asdict(answer))
        print(SAMPLE_DONE, flush=True)  # noqa: T201 - the parent process counts these lines
    seconds = time.perf_counter() - loaded - metrics.seconds
    metrics.close()
    peak = rss_bytes("VmHWM")
    return {
        "answers": answers,
        "tokens": sum(len(sample.tokens) for sample in samples),
        "seconds": seconds,
        "load_seconds": loaded - started,
        "baseline_rss_bytes": baseline,
        "peak_rss_bytes": peak,
        "phases": _phases(runner, samples),
        "notes": list(runner.notes),
    }


def _phases(runner: Any, samples: InputsStore) -> dict[str, Any] | None:
    """Return None without samples (a model that is only loaded) or for an engine without a KV cache."""
    supported = len(samples) and isinstance(runner, SupportsPhases)
    return asdict(runner.time_phases(typical_sample(samples))) if supported else None


def typical_sample(samples: Sequence[Inputs]) -> Inputs:
    """Return the sample of median length among those with an image, or among all if none has one."""
    with_image = [sample for sample in samples if sample.slices]
    by_length = sorted(with_image or samples, key=lambda sample: len(sample.tokens))
    return by_length[len(by_length) // 2]


def _sequential_memory(task: Task) -> dict[str, Any]:
    engine, samples = cast(SequentialEngine, _engine_module(task)), InputsStore(Path(task.samples))
    longest = max(samples, key=lambda sample: len(sample.tokens))
    encoded = worst_case_encoding(longest, samples)
    found = engine.encode_images(Path(task.model), task.threads, [encoded])
    vision_peak = rss_bytes("VmHWM")
    embeddings = repeated_embeddings(longest, encoded, found)
    runner = engine.open_language_model(Path(task.model), task.threads, embeddings, **task.options)
    for _ in runner.run([longest], _consume):
        pass
    return {"vision_rss_bytes": vision_peak, "total_rss_bytes": rss_bytes("VmHWM")}


def worst_case_encoding(longest: Inputs, samples: Iterable[Inputs]) -> Inputs:
    """Return the longest sample with the slices and audio whose encoding needs the most memory.

    Slices of equal shape are there once, and that of the most pixels of all samples is added; audio is that of the
    sample, and the longest of all samples.
    """
    slices = {pixels.shape: pixels for pixels in longest.slices}
    audio = list(longest.audio)
    for sample in samples:  # one of them is in memory at a time
        for pixels in sample.slices:
            if pixels.size > max((one.size for one in slices.values()), default=0):
                slices[pixels.shape] = pixels
        audio += [one for one in sample.audio if len(one) > max(map(len, audio), default=0)]
    return replace(longest, slices=tuple(slices.values()), audio=tuple(audio))


def repeated_embeddings(sample: Inputs, encoded: Inputs, embeddings: SliceEmbeddings) -> SliceEmbeddings:
    """Return embeddings for all slices and audio of a sample, from those of `worst_case_encoding`.

    Equal shapes have equal embeddings, each in memory of its own. There are none for a model without an encoder.
    """
    if not embeddings:
        return []
    by_shape = dict(zip((pixels.shape for pixels in encoded.slices), embeddings, strict=False))
    first_audio = len(encoded.slices)
    return [
        *(by_shape[pixels.shape].copy() for pixels in sample.slices),
        *embeddings[first_audio : first_audio + len(sample.audio)],
    ]


def _greedy(task: Task) -> dict[str, Any]:
    from mcpmq.runners.greedy import Budget, greedy_answers

    open_runner = cast(OpenRunner, _engine_module(task).open_runner)
    samples = list(InputsStore(Path(task.samples)))
    runner = open_runner(Path(task.model), task.threads, **task.options)
    answers = greedy_answers(runner, samples, task.predicted, Budget(*task.budget))
    return {"answers": [asdict(answer) for answer in answers]}


RUN_MODE: dict[Mode, Callable[[Task], dict[str, Any]]] = {
    "measure": _measure,
    "sequential-memory": _sequential_memory,
    "greedy": _greedy,
}


def _consume(_: Inputs, logits: Iterable[Logits]) -> int:
    return sum(1 for _ in logits)


def _engine_module(task: Task) -> Any:
    return import_module(f"mcpmq.runners.{task.engine}")


def rss_bytes(key: str) -> int:
    """Return the resident set size of this process in bytes: current (`VmRSS`) or peak (`VmHWM`).

    Read from /proc/self/status on Linux, from psutil and getrusage elsewhere.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(found.split()[1]) * 1024
    import psutil

    memory = psutil.Process().memory_info()
    if key == "VmRSS":
        return int(memory.rss)
    if sys.platform == "win32":
        return int(memory.peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
