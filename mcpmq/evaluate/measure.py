"""Measure a model in its engine: accuracy on an evaluation set, file sizes, memory and speed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.evaluate import cache
from mcpmq.evaluate.inputs import EncodedInputs, inputs_of
from mcpmq.evaluate.metrics import group_results
from mcpmq.evaluate.schema import ComparedTokens, MachineMetrics, Measurement, SampleMetrics
from mcpmq.evaluate.settings import Settings
from mcpmq.families.inputs import Inputs
from mcpmq.formats import engine_of
from mcpmq.formats.format import Engine
from mcpmq.formats.kv_cache import F16_CACHE, F32_CACHE
from mcpmq.runners.launcher import ENGINES, NO_REFERENCES, RunResult, measure_sequential_peak, run_engine
from mcpmq.runners.logprobs import logprobs_nbytes
from mcpmq.runners.runner import EngineOptions
from mcpmq.runners.token_metrics import TokenResults
from mcpmq.system.environment import describe_machine, kernel_selection
from mcpmq.system.output import check_disk_space

DECIMALS = 8  # of losses and divergences, in nats
MEASUREMENT_FILE, LOGPROBS_FILE, VOCABULARY_FILE = "measurement.json", "log_probabilities", "vocabulary.npz"
DEFAULT_CACHES = {"gguf": F16_CACHE, "onnx": F32_CACHE}


@dataclass(frozen=True, slots=True)
class OriginalResult:
    """The measurement of a checkpoint, and the file with its log-probabilities."""

    measurement: Measurement
    logprobs: Path


def measure(
    artifact: Artifact,
    inputs: EncodedInputs,
    settings: Settings,
    references: Mapping[str, Path] = NO_REFERENCES,
    save_logprobs: Path | None = None,
) -> Measurement:
    """Measure an artifact in its engine, in a worker process, and compare it with the log-probabilities of references.

    The log-probabilities of the artifact are written to `save_logprobs`, for use as a reference. A quantized model
    that is not exported yet is measured in PyTorch on dequantized weights.

    Raises:
        EngineError: the engine failed.
        ArtifactError: files of the artifact are missing or changed, or it is an importance matrix.
    """
    kind = artifact.manifest.kind
    if kind == "imatrix":
        raise ArtifactError(
            f"`{artifact.path}` is an importance matrix, not a model", "evaluate an artifact that `mcpmq export` wrote"
        )
    artifact.verify()
    engine = engine_of(kind)
    with inputs_of(artifact.manifest, inputs, settings) as own:
        result = run_engine(
            engine,
            artifact.path,
            own.store,
            settings.threads,
            settings.progress,
            references=references,
            reference_vocabulary=_vocabulary_file(own),
            save_logprobs=save_logprobs,
            options=artifact_options(engine, settings),
        )
        measurement = _measurement(engine_name(engine), result, artifact.nbytes_by_component(), own)
        return _with_memory(measurement, engine, artifact.path, own, settings)


def _vocabulary_file(inputs: EncodedInputs) -> Path | None:
    """Write the vocabulary of the references, if the inputs have the tokens of a part of it."""
    if inputs.vocabulary is None:
        return None
    file = inputs.store.folder / VOCABULARY_FILE
    inputs.vocabulary.save(file)
    return file


def _with_memory(
    measurement: Measurement, engine: Engine, path: Path, inputs: EncodedInputs, settings: Settings
) -> Measurement:
    """Add the size of the KV cache and, for image samples, the peak memory of sequential loading."""
    if engine not in DEFAULT_CACHES:
        return measurement
    machine = measurement.machine_dependent
    if not settings.engine_preprocessing and any(sample.slices for sample in inputs.store):
        peak = measure_sequential_peak(engine, path, inputs.store, settings.threads, artifact_options(engine, settings))
        peaks = {"sequential_peak_rss_bytes": peak.total_rss_bytes, "vision_peak_rss_bytes": peak.vision_rss_bytes}
        machine = machine.model_copy(update=peaks)
    cache = settings.kv_cache or DEFAULT_CACHES[engine]
    name, nbytes = str(cache) if engine == "gguf" else None, cache.nbytes(inputs.cached_per_token)
    changes = {"machine_dependent": machine, "kv_cache": name, "kv_cache_bytes_per_token": nbytes}
    return measurement.model_copy(update=changes)


def engine_name(engine: Engine) -> str:
    """Return the display name and version of an engine: `ONNX Runtime 1.24.2`."""
    label, package = ENGINES[engine]
    return f"{label} {version(package)}"


def measure_original(checkpoint: Checkpoint, inputs: EncodedInputs, settings: Settings) -> OriginalResult:
    """Measure the checkpoint in PyTorch, or return the cached result of an earlier run.

    Without a cache the log-probability file is in the folder of the inputs.

    Raises:
        EngineError: the engine failed.
        OutputError: the disk space is not sufficient for the log-probabilities.
    """
    tokens = sum(len(sample.measured) for sample in inputs.store)
    needed = logprobs_nbytes(tokens, checkpoint.architecture.language.vocab_size)
    cache_folder = settings.cache_folder
    if cache_folder is None or needed > cache.MAX_CACHE_NBYTES:
        return _run_uncached(checkpoint, inputs, settings, needed)
    name = original_key(checkpoint, inputs, settings)
    if cached := _read_cached(cache_folder, name, inputs):
        return cached
    if error := cache.write_error(cache_folder):
        return _run_uncached(checkpoint, inputs, settings, needed, error)
    check_disk_space(cache_folder, needed)
    with cache.new_entry(cache_folder, name) as folder:
        measurement = _run_original(checkpoint, inputs, settings, folder).measurement
        (folder / MEASUREMENT_FILE).write_text(measurement.model_dump_json())
    if inputs.resources.enter_context(cache.open_entry(cache_folder, name)) is None:
        raise OutputError(f"`{cache_folder / name}` changed after it was written", "measure again with `--no-cache`")
    return OriginalResult(measurement, cache_folder / name / LOGPROBS_FILE)


def _run_uncached(
    checkpoint: Checkpoint, inputs: EncodedInputs, settings: Settings, needed_nbytes: int, error: str | None = None
) -> OriginalResult:
    check_disk_space(inputs.store.folder, needed_nbytes)
    result = _run_original(checkpoint, inputs, settings, inputs.store.folder)
    return replace(result, measurement=_with_machine_metrics(result.measurement, cache_error=error))


def _with_machine_metrics(measurement: Measurement, **metrics: object) -> Measurement:
    machine = measurement.machine_dependent.model_copy(update=metrics)
    return measurement.model_copy(update={"machine_dependent": machine})


def _run_original(checkpoint: Checkpoint, inputs: EncodedInputs, settings: Settings, folder: Path) -> OriginalResult:
    file = folder / LOGPROBS_FILE
    result = run_engine(
        *("torch", checkpoint.path, inputs.store, settings.threads, settings.progress),
        save_logprobs=file,
        options=replace(original_options(checkpoint), device=settings.first_device),
    )
    return OriginalResult(_measurement(engine_name("torch"), result, _original_nbytes(checkpoint), inputs), file)


def artifact_options(engine: Engine, settings: Settings) -> EngineOptions:
    """Return the options of the runner of an artifact: the types of llama.cpp's KV cache."""
    cache = settings.kv_cache if engine == "gguf" else None
    return EngineOptions(kv_cache=str(cache) if cache else None)


def original_options(checkpoint: Checkpoint) -> EngineOptions:
    """Return the options of the runner of a checkpoint: its adapters."""
    return EngineOptions(tuple(str(path.absolute()) for path in checkpoint.adapter_paths))


def original_key(checkpoint: Checkpoint, inputs: EncodedInputs, settings: Settings) -> str:
    """Return the name of the cache entry with the measurement of an original on these inputs."""
    versions = [version(package) for package in ("mcpmq", "torch", "transformers")]
    key = [checkpoint.sha256, inputs.store.sha256, inputs.groups, inputs.notes, versions, settings.threads]
    if settings.first_device not in (None, "cpu"):
        key.append(settings.first_device)
    return hashlib.sha256(json.dumps([*key, describe_machine(), kernel_selection()]).encode()).hexdigest()


def _read_cached(cache_folder: Path, name: str, inputs: EncodedInputs) -> OriginalResult | None:
    folder = inputs.resources.enter_context(cache.open_entry(cache_folder, name))
    if folder is None or not (folder / LOGPROBS_FILE).is_file():
        return None
    try:
        measurement = Measurement.model_validate_json((folder / MEASUREMENT_FILE).read_bytes())
    except (OSError, ValidationError):  # of another version
        return None
    return OriginalResult(_with_machine_metrics(measurement, from_cache=True), folder / LOGPROBS_FILE)


def _original_nbytes(checkpoint: Checkpoint) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in checkpoint.specs:
        sizes[spec.component] = sizes.get(spec.component, 0) + checkpoint.entries[spec.name].nbytes
    return sizes | {"model": sum(file.nbytes for file in checkpoint.text_files)}


def _measurement(engine: str, result: RunResult, nbytes: Mapping[str, int], inputs: EncodedInputs) -> Measurement:
    samples = tuple(_sample_metrics(inputs, result))
    machine = MachineMetrics(
        load_seconds=round(result.load_seconds, 3),
        tokens_per_second=round(result.tokens / result.seconds, 1),
        peak_rss_bytes=result.peak_rss_bytes,
        baseline_rss_bytes=result.baseline_rss_bytes,
        phases=result.phases,
    )
    return Measurement(
        engine=engine,
        groups=group_results(samples),
        nbytes_by_component=dict(nbytes),
        machine_dependent=machine,
        notes=(*inputs.notes, *result.notes),
        samples=samples,
    )


def _sample_metrics(inputs: EncodedInputs, result: RunResult) -> Iterator[SampleMetrics]:
    """Yield the metrics of every sample; ids are those of the original."""
    vocabulary = inputs.vocabulary
    for number, (sample, results) in enumerate(zip(inputs.store, result.answers, strict=True)):
        if vocabulary is None:
            yield sample_metrics(sample, inputs.groups[number], results)
            continue
        restored = replace(sample, tokens=vocabulary.kept_ids[sample.tokens])
        compared = results if vocabulary.same_tokens[number] else replace(results, compared={})
        answers = (turn.text for turn in inputs.samples.samples[number].turns if turn.role == "assistant")
        characters = max(1, sum(map(len, answers)))
        metrics = sample_metrics(restored, inputs.groups[number], compared)
        yield metrics.model_copy(update={"characters": characters})


def sample_metrics(sample: Inputs, group: str, results: TokenResults) -> SampleMetrics:
    """Convert the token results of a sample to the record of a report; losses and divergences are rounded."""
    compared = {
        name: ComparedTokens(
            kl_divergences=tuple(round(one, DECIMALS) for one in tokens.kl_divergences),
            top1_match=tuple(tokens.top1_match),
            removed_probability=tuple(round(one, DECIMALS) for one in tokens.removed_probability),
        )
        for name, tokens in results.compared.items()
    }
    answer = sample.answer_tokens.tolist()
    return SampleMetrics(
        id=sample.id,
        group=group,
        losses=tuple(round(loss, DECIMALS) for loss in results.losses),
        correct=tuple(one == token for one, token in zip(results.argmax_ids, answer, strict=True)),
        argmax_ids=tuple(results.argmax_ids),
        compared=compared,
    )
