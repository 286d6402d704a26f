"""Measure an original and its artifacts on the same tokens and pixels, each in its own engine and process."""

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import HOLDOUT_EVERY, SampleSet
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import (
    ENGINE_BASELINE,
    ORIGINAL,
    EncodedInputs,
    Estimate,
    Measurement,
    Settings,
    VocabularyDifference,
    differences,
    encode_samples,
    measure,
    measure_original,
    vocabulary_differences,
)
from mcpmq.evaluate.score_file import ScoresByArtifact, read_scores
from mcpmq.formats import engine_of
from mcpmq.formats.kv_cache import check_cache, head_widths
from mcpmq.formats.support import check_audio
from mcpmq.report.calibration_samples import calibration_samples
from mcpmq.report.greedy_answers import GreedyAnswers, generate_greedy_answers
from mcpmq.report.layer_errors import layer_errors
from mcpmq.report.report import (
    ArtifactResult,
    CalibrationInfo,
    DatasetInfo,
    Environment,
    Report,
    SourceInfo,
    WeightInfo,
)
from mcpmq.report.worst_samples import worst_ids, worst_pairs, worst_samples
from mcpmq.system.environment import describe_machine, installed_versions
from mcpmq.system.progress import begin_stages

PACKAGES = ("mcpmq", "torch", "transformers", "tokenizers", "numpy", "pillow", "xllamacpp", "onnxruntime")
UNQUANTIZED_SCHEMES = (None, "f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class ComparisonContext:
    """The data that the results of all artifacts are computed from."""

    checkpoint: Checkpoint
    samples: SampleSet
    answers: dict[str, list[int]]  # token ids by sample id
    original: Measurement
    engine_baselines: Mapping[str, Measurement]  # by kind of artifact
    calibration_divergences: Mapping[str, dict[str, Estimate]]  # by hash of the artifact and group
    task_scores: ScoresByArtifact


def compare(
    checkpoint: Checkpoint,
    artifacts: Sequence[Artifact],
    samples: SampleSet,
    settings: Settings,
    *,
    engine_baselines: Sequence[Artifact] = (),
    held_out_from_calibration: bool = False,
    calibration: SampleSet | None = None,
    scores: Path | None = None,
) -> Report:
    """Measure the original and every artifact, and return them with their differences.

    Calibrated artifacts are also measured on samples of `calibration`, which shows whether it represents `samples`.

    `engine_baselines` are unquantized artifacts, at most one for every format; they come first in the report, and the
    differences from them exclude the error of the engine. `scores` is a score file with entries for the artifacts.

    Raises:
        ArtifactError: an artifact was made from another checkpoint, its files changed, or a baseline is quantized.
        DatasetError: an artifact was calibrated on a sample of the set, or has no audio encoder for it, or the file of
            scores is invalid.
        EngineError: an engine failed, or does not support the types of the KV cache.
    """
    _check_engine_baselines(engine_baselines, artifacts)
    for artifact in (*engine_baselines, *artifacts):
        check_source(checkpoint, artifact)
        check_cache(settings.kv_cache, _engine(artifact), head_widths(checkpoint.architecture.language))
        check_audio(checkpoint.family, artifact.manifest.kind, artifact.manifest.recipe, samples)
        if not held_out_from_calibration and (used := artifact.manifest.calibration_set):
            samples.check_disjoint(used.name, used.fingerprints)
    task_scores = read_scores(scores, checkpoint, artifacts) if scores else {}
    names = [artifact.path.name for artifact in (*engine_baselines, *artifacts)]
    stages = ["encoding samples", "measuring the original", *(f"measuring {name}" for name in names), "comparing"]
    begin_stage = begin_stages(settings.progress, stages)
    begin_stage()
    with encode_samples(checkpoint, samples, settings) as inputs:
        begin_stage()
        original = measure_original(checkpoint, inputs, settings)
        references = {ORIGINAL: original.logprobs}
        baselines = _measure_engine_baselines(engine_baselines, inputs, settings, references, begin_stage)
        measured = _measure_artifacts(artifacts, baselines, inputs, settings, references, begin_stage)
        begin_stage()
        answers = {one.id: one.answer_tokens.tolist() for one in inputs.store}
        worst = [(*pair, worst_ids(original.measurement, pair[1])) for pair in measured]
        greedy = generate_greedy_answers(checkpoint, original.measurement, worst, inputs, settings)
    on_calibration = _calibration_divergences(checkpoint, artifacts, calibration, settings) if calibration else {}
    by_kind = {kind: baseline.measurement for kind, baseline in baselines.items()}
    context = ComparisonContext(
        checkpoint, samples, answers, original.measurement, by_kind, on_calibration, task_scores
    )
    return Report(
        checkpoint=SourceInfo(name=checkpoint.merged_name, sha256=checkpoint.sha256),
        eval_set=dataset_info(samples, settings, held_out_from_calibration=held_out_from_calibration),
        original=original.measurement,
        artifacts=tuple(artifact_result(context, *pair, one) for pair, one in zip(measured, greedy, strict=True)),
        environment=describe_environment(settings),
    )


def _engine(artifact: Artifact) -> str:
    kind = artifact.manifest.kind
    return kind if kind == "imatrix" else engine_of(kind)


def check_source(checkpoint: Checkpoint, artifact: Artifact) -> None:
    """Check that an artifact was made from a checkpoint.

    Raises:
        ArtifactError: the artifact was made from another checkpoint.
    """
    source = artifact.manifest.source
    if source.sha256 != checkpoint.sha256:
        raise ArtifactError(
            f"`{artifact.path}` was made from `{source.merged_name}` ({source.sha256[:12]}), not from"
            f" `{checkpoint.path}` ({checkpoint.sha256[:12]})",
            "give the original of the artifact, with its adapters",
        )


def _calibration_divergences(
    checkpoint: Checkpoint, artifacts: Sequence[Artifact], calibration: SampleSet, settings: Settings
) -> dict[str, dict[str, Estimate]]:
    """Return the mean KLD of every calibrated artifact on samples of its calibration set.

    A selection of methods holds out such samples; other methods have calibrated on them.
    """
    calibrated = [artifact for artifact in artifacts if artifact.manifest.calibration_set]
    if not calibrated or len(calibration) < HOLDOUT_EVERY:
        return {}
    with encode_samples(checkpoint, calibration_samples(calibration), settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        references, divergences = {ORIGINAL: original.logprobs}, {}
        for artifact in calibrated:
            measured = measure(artifact, inputs, settings, references)
            found = differences(original.measurement.samples, measured.samples, ORIGINAL)
            divergences[artifact.sha256] = {group: one.kl_divergence for group, one in found.items()}
    return divergences


@dataclass(frozen=True, slots=True)
class _EngineBaseline:
    """A measured unquantized artifact, and the file of its log-probabilities."""

    artifact: Artifact
    measurement: Measurement
    logprobs: Path


def _measure_engine_baselines(
    artifacts: Sequence[Artifact],
    inputs: EncodedInputs,
    settings: Settings,
    references: Mapping[str, Path],
    begin_stage: Callable[[], None],
) -> dict[str, _EngineBaseline]:
    baselines: dict[str, _EngineBaseline] = {}
    for artifact in artifacts:
        begin_stage()
        kind = artifact.manifest.kind
        logprobs = inputs.store.folder / f"{ENGINE_BASELINE}-{kind}"
        baselines[kind] = _EngineBaseline(artifact, measure(artifact, inputs, settings, references, logprobs), logprobs)
    return baselines


def _measure_artifacts(
    artifacts: Sequence[Artifact],
    baselines: Mapping[str, _EngineBaseline],
    inputs: EncodedInputs,
    settings: Settings,
    references: Mapping[str, Path],
    begin_stage: Callable[[], None],
) -> list[tuple[Artifact, Measurement]]:
    """Return the measurements of the engine baselines and the artifacts."""
    measured = [(baseline.artifact, baseline.measurement) for baseline in baselines.values()]
    for artifact in artifacts:
        begin_stage()
        baseline = baselines.get(artifact.manifest.kind)
        more = {ENGINE_BASELINE: baseline.logprobs} if baseline else {}
        measured.append((artifact, measure(artifact, inputs, settings, {**references, **more})))
    return measured


def _check_engine_baselines(baselines: Sequence[Artifact], artifacts: Sequence[Artifact]) -> None:
    kinds, baseline_kinds = ([one.manifest.kind for one in several] for several in (artifacts, baselines))
    for baseline, kind in zip(baselines, baseline_kinds, strict=True):
        if compression := baseline.manifest.compression:
            raise ArtifactError(
                f"the engine baseline `{baseline.path}` has {compression}",
                "export one with all tokens, layers and image tokens",
            )
        if schemes := {one.scheme for one in baseline.manifest.weights if one.scheme not in UNQUANTIZED_SCHEMES}:
            listed = ", ".join(f"`{scheme}`" for scheme in sorted(map(str, schemes)))
            raise ArtifactError(
                f"the engine baseline `{baseline.path}` is quantized to {listed}", "export one with the recipe `full`"
            )
        if kind not in kinds:
            raise ArtifactError(
                f"the engine baseline `{baseline.path}` has the format {kind}, and no artifact has it",
                "give an artifact in the same format",
            )
        if baseline_kinds.count(kind) > 1:
            raise ArtifactError(f"two engine baselines have the format {kind}", "give one for every format")


def artifact_result(
    context: ComparisonContext, artifact: Artifact, measurement: Measurement, greedy: GreedyAnswers
) -> ArtifactResult:
    """Return the measurement of an artifact with its differences from the original and from the engine baseline."""
    pairs = worst_pairs(context.original, measurement)
    used, baseline = artifact.manifest.calibration_set, context.engine_baselines.get(artifact.manifest.kind)
    baseline_differences = None
    if baseline and baseline is not measurement:
        baseline_differences = differences(baseline.samples, measurement.samples, ENGINE_BASELINE)
    return ArtifactResult(
        name=artifact.path.resolve().name,
        kind=artifact.manifest.kind,
        recipe=str(artifact.manifest.recipe.get("name", "")),
        sha256=artifact.sha256,
        calibration_set=CalibrationInfo(name=used.name, sha256=used.sha256) if used else None,
        weights=_weight_info(artifact),
        measurement=measurement,
        differences=differences(context.original.samples, measurement.samples, ORIGINAL),
        vocabulary=_vocabulary_differences(context, artifact, measurement),
        calibration_kl_divergence=context.calibration_divergences.get(artifact.sha256),
        engine_baseline_differences=baseline_differences,
        task_scores=dict(context.task_scores.get(artifact.sha256, {})),
        layers=layer_errors(context.checkpoint, artifact),
        worst_samples=worst_samples(context.checkpoint, context.samples, context.answers, pairs, greedy),
    )


def _vocabulary_differences(
    context: ComparisonContext, artifact: Artifact, measurement: Measurement
) -> dict[str, VocabularyDifference] | None:
    if artifact.manifest.vocabulary is None:
        return None
    return vocabulary_differences(context.original.samples, measurement.samples, ORIGINAL)


def _weight_info(artifact: Artifact) -> WeightInfo:
    records, nbytes = artifact.manifest.weights, Counter[str]()
    for record in records:
        nbytes[record.scheme or f"kept {record.dtype}"] += record.nbytes
    bits = 8 * nbytes.total() / sum(prod(record.shape) for record in records)
    return WeightInfo(bits_per_weight=round(bits, 4), nbytes_by_scheme=dict(nbytes))


def dataset_info(samples: SampleSet, settings: Settings, *, held_out_from_calibration: bool = False) -> DatasetInfo:
    """Return name, hash and controls of an evaluation set."""
    return DatasetInfo(
        name=samples.name,
        sha256=samples.sha256,
        samples=len(samples),
        held_out_from_calibration=held_out_from_calibration,
        images_shuffled=settings.shuffle_images,
        engine_preprocessing=settings.engine_preprocessing,
    )


def describe_environment(settings: Settings) -> Environment:
    """Return the machine and the installed versions."""
    return Environment(
        machine=describe_machine(),
        python=platform.python_version(),
        versions=installed_versions(PACKAGES),
        threads=settings.threads,
    )
