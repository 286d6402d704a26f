"""What a model makes of held-out answers, what it weighs and what it takes: measured in its own engine."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from mcpmq.artifact import Artifact, refuse_full_disk
from mcpmq.checkpoint import HUB_PATTERNS, Checkpoint
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import cache
from mcpmq.evaluate.inputs import EncodedSet
from mcpmq.evaluate.metrics import ComparedTokens, KindResult, SampleFigures, by_kind
from mcpmq.evaluate.record import Record
from mcpmq.evaluate.settings import Settings
from mcpmq.families.family import Inputs
from mcpmq.runners.launcher import (
    ENGINE_OF,
    ENGINES,
    NOTHING,
    Engine,
    Run,
    run,
)
from mcpmq.runners.logprobs import nbytes_of
from mcpmq.runners.runner import Phases
from mcpmq.runners.sequential_memory import measure_in_turn
from mcpmq.runners.token_metrics import Judged
from mcpmq.system.environment import describe_machine

DECIMALS = 8  # of losses and divergences, in nats
MEASUREMENT, LOG_PROBABILITIES = "measurement.json", "log_probabilities"
CACHED_VALUE_BYTES = {"gguf": 2, "onnx": 4}  # of a key or a value: F16 by llama.cpp's default; the graph's float32
ORIGINAL, UNQUANTIZED = "original", "unquantized"  # what an artifact's figures are compared with


class MachineFigures(Record):
    """What another machine, or this one tomorrow, would measure differently."""

    load_seconds: float  # from starting the engine to being ready
    tokens_per_second: float  # prompts and answers, images included
    peak_resident_bytes: int
    resident_bytes_before_load: int  # the engine itself
    phases: Phases | None  # of a sample of median length with an image; None for PyTorch, which runs without a cache
    reused: bool = False  # measured earlier, on the same inputs, by the same versions
    in_turn_peak_resident_bytes: int | None = None  # vision loaded, used and released before language is loaded
    seeing_peak_resident_bytes: int | None = None  # of the same, until vision was released


class Measurement(Record):
    """One model on one set of samples."""

    engine: str
    kinds: dict[str, KindResult]
    nbytes_by_component: dict[str, int]
    machine_dependent: MachineFigures
    notes: tuple[str, ...]
    samples: tuple[SampleFigures, ...]
    cache_bytes_per_token: int | None = None  # of keys and values, computed: what the engine keeps of each token

    @property
    def nbytes(self) -> int:
        return sum(self.nbytes_by_component.values())


@dataclass(frozen=True, slots=True)
class Original:
    """The measured checkpoint, and the file of its log-probabilities that artifacts are compared with."""

    measurement: Measurement
    log_probabilities: Path


def measure(
    artifact: Artifact,
    inputs: EncodedSet,
    settings: Settings,
    against: Mapping[str, Path] = NOTHING,
    keep: Path | None = None,
) -> Measurement:
    """Run an artifact over the inputs in its own engine, in a fresh process, compared with the models `against`.

    `keep` is a file to write its own log-probabilities to, so that others can be compared with it.
    A quantized artifact that is in no engine's format yet is measured in PyTorch on dequantized weights.

    Raises:
        EngineError: the engine failed.
        ArtifactError: files of the artifact are missing or changed.
    """
    kind = artifact.manifest.kind
    if kind == "imatrix":
        raise ArtifactError(f"`{artifact.path}` holds an importance matrix, no model", "name what `mcpmq export` wrote")
    artifact.verify()
    engine = ENGINE_OF[kind]
    result = run(engine, artifact.path, inputs.files, settings.threads, settings.progress, against=against, keep=keep)
    measured = _measurement(engine_name(engine), result, artifact.nbytes_by_component(), inputs)
    return _with_memory(measured, engine, artifact.path, inputs, settings)


def _with_memory(
    measured: Measurement, engine: Engine, path: Path, inputs: EncodedSet, settings: Settings
) -> Measurement:
    """The same with what the cache takes, and where slices are seen, with what one thing after the other takes."""
    if engine not in CACHED_VALUE_BYTES:
        return measured
    machine = measured.machine_dependent
    if not settings.engine_cuts and any(sample.slices for sample in inputs.files):
        peaks = measure_in_turn(engine, path, inputs.files, settings.threads)
        figures = {
            "in_turn_peak_resident_bytes": peaks.resident_bytes,
            "seeing_peak_resident_bytes": peaks.seeing_bytes,
        }
        machine = machine.model_copy(update=figures)
    cache_bytes = CACHED_VALUE_BYTES[engine] * inputs.cached_values_per_token
    return measured.model_copy(update={"machine_dependent": machine, "cache_bytes_per_token": cache_bytes})


def engine_name(engine: Engine) -> str:
    """`ONNX Runtime 1.24.2`."""
    label, package = ENGINES[engine]
    return f"{label} {version(package)}"


def measure_original(checkpoint: Checkpoint, inputs: EncodedSet, settings: Settings) -> Original:
    """Run the checkpoint over the inputs in PyTorch, or recall an earlier run; its file may lie among the inputs.

    Raises:
        EngineError: the engine failed.
        OutputError: the disk has too little room for the log-probabilities.
    """
    tokens = sum(len(sample.tokens) - sample.answer_start for sample in inputs.files)
    needed = nbytes_of(tokens, checkpoint.architecture.language.vocabulary)
    if settings.cache is None or needed > cache.LIMIT_NBYTES:
        refuse_full_disk(inputs.files.folder, needed)
        return _run_original(checkpoint, inputs, settings, inputs.files.folder)
    name = _cache_key(checkpoint, inputs, settings)
    if recalled := _recalled(cache.recall(settings.cache, name)):
        return recalled
    refuse_full_disk(settings.cache, needed)
    with cache.remembering(settings.cache, name) as folder:
        measured = _run_original(checkpoint, inputs, settings, folder).measurement
        (folder / MEASUREMENT).write_text(measured.model_dump_json())
    return Original(measured, settings.cache / name / LOG_PROBABILITIES)


def _run_original(checkpoint: Checkpoint, inputs: EncodedSet, settings: Settings, folder: Path) -> Original:
    kept = folder / LOG_PROBABILITIES
    result = run("torch", checkpoint.path, inputs.files, settings.threads, settings.progress, keep=kept)
    return Original(_measurement(engine_name("torch"), result, _original_nbytes(checkpoint), inputs), kept)


def _cache_key(checkpoint: Checkpoint, inputs: EncodedSet, settings: Settings) -> str:
    versions = [version(package) for package in ("mcpmq", "torch", "transformers")]
    asked = [checkpoint.sha256, inputs.files.sha256, inputs.kinds, inputs.notes, versions, settings.threads]
    return hashlib.sha256(json.dumps([*asked, describe_machine()]).encode()).hexdigest()


def _recalled(folder: Path | None) -> Original | None:
    if folder is None or not (folder / LOG_PROBABILITIES).is_file():
        return None
    try:
        kept = Measurement.model_validate_json((folder / MEASUREMENT).read_bytes())
    except (OSError, ValidationError):  # damaged, or of another version: then it is measured
        return None
    reused = kept.machine_dependent.model_copy(update={"reused": True})
    return Original(kept.model_copy(update={"machine_dependent": reused}), folder / LOG_PROBABILITIES)


def _original_nbytes(checkpoint: Checkpoint) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in checkpoint.specs:
        sizes[spec.component] = sizes.get(spec.component, 0) + checkpoint.entries[spec.name].nbytes
    texts = {file for pattern in HUB_PATTERNS[1:] for file in checkpoint.path.glob(pattern)}
    return sizes | {"model": sum(file.stat().st_size for file in texts if not file.name.endswith(".index.json"))}


def _measurement(engine: str, result: Run, nbytes: Mapping[str, int], inputs: EncodedSet) -> Measurement:
    samples = tuple(
        figures_of(sample, kind, judged)
        for sample, kind, judged in zip(inputs.files, inputs.kinds, result.answers, strict=True)
    )
    machine = MachineFigures(
        load_seconds=round(result.load_seconds, 3),
        tokens_per_second=round(result.tokens / result.seconds, 1),
        peak_resident_bytes=result.peak_resident_bytes,
        resident_bytes_before_load=result.resident_bytes_before_load,
        phases=result.phases,
    )
    return Measurement(
        engine=engine,
        kinds=by_kind(samples),
        nbytes_by_component=dict(nbytes),
        machine_dependent=machine,
        notes=(*inputs.notes, *result.notes),
        samples=samples,
    )


def figures_of(sample: Inputs, kind: str, judged: Judged) -> SampleFigures:
    """What is kept of a judged answer."""
    compared = {
        name: ComparedTokens(
            kl_divergences=tuple(round(one, DECIMALS) for one in tokens.kl_divergences),
            same_top=tuple(tokens.same_top),
        )
        for name, tokens in judged.compared.items()
    }
    answer = sample.tokens[sample.answer_start :].tolist()
    return SampleFigures(
        id=sample.id,
        kind=kind,
        losses=tuple(round(loss, DECIMALS) for loss in judged.losses),
        right=tuple(one == token for one, token in zip(judged.likeliest, answer, strict=True)),
        likeliest=tuple(judged.likeliest),
        compared=compared,
    )
