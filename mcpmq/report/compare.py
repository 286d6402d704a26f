"""Measures the original and its artifacts on the same tokens and pixels, each in its own engine and process."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import (
    ORIGINAL,
    UNQUANTIZED,
    EncodedSet,
    Measurement,
    Settings,
    encoded,
    measure,
    measure_original,
)
from mcpmq.report.entries import Seen, entry_of
from mcpmq.report.report import Environment, Report, SetFacts, SourceFacts
from mcpmq.system.environment import describe_machine, installed_versions

PACKAGES = ("mcpmq", "torch", "transformers", "tokenizers", "numpy", "pillow", "xllamacpp", "onnxruntime")


def compare(
    checkpoint: Checkpoint,
    artifacts: Sequence[Artifact],
    samples: CalibrationSet,
    settings: Settings,
    *,
    unquantized: Sequence[Artifact] = (),
    held_out_from_calibration: bool = False,
) -> Report:
    """Measure the original and every artifact on the same tokens and pixels, each in its own engine and process.

    With `unquantized` artifacts, one a format, what quantization makes different is told from what the engine does.

    Raises:
        ArtifactError: an artifact was made from another checkpoint, its files changed, or one is not unquantized.
        CalibrationError: an artifact was calibrated on some of the samples.
        EngineError: an engine failed.
    """
    _refuse_quantized(unquantized, artifacts)
    for artifact in (*unquantized, *artifacts):
        refuse_other_source(checkpoint, artifact)
        if not held_out_from_calibration and (used := artifact.manifest.calibrated_on):
            samples.refuse_seen(used.name, used.fingerprints)
    with encoded(checkpoint, samples, settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        against = {ORIGINAL: original.log_probabilities}
        floors = _floors(unquantized, inputs, settings, against)
        measured = [(floor.artifact, floor.measurement) for floor in floors.values()]
        for artifact in artifacts:
            floor = floors.get(artifact.manifest.kind)
            more = {UNQUANTIZED: floor.log_probabilities} if floor else {}
            measured.append((artifact, measure(artifact, inputs, settings, against | more)))
        answers = {one.id: one.tokens[one.answer_start :].tolist() for one in inputs.files}
    engines = {kind: floor.measurement for kind, floor in floors.items()}
    seen = Seen(checkpoint, samples, answers, original.measurement, engines)
    return Report(
        checkpoint=SourceFacts(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256),
        measured_on=facts_of(samples, settings, held_out_from_calibration=held_out_from_calibration),
        original=original.measurement,
        artifacts=tuple(entry_of(seen, *pair) for pair in measured),
        environment=environment_of(settings),
    )


def refuse_other_source(checkpoint: Checkpoint, artifact: Artifact) -> None:
    """Refuse to compare a checkpoint with what was made from another.

    Raises:
        ArtifactError: it was.
    """
    source = artifact.manifest.source
    if source.sha256 != checkpoint.sha256:
        raise ArtifactError(
            f"`{artifact.path}` was made from `{source.name}` ({source.sha256[:12]}), which is not"
            f" `{checkpoint.path}` ({checkpoint.sha256[:12]})",
            "measure it against the checkpoint that it was made from",
        )


@dataclass(frozen=True, slots=True)
class _Floor:
    """An unquantized artifact, measured, and the file of its log-probabilities."""

    artifact: Artifact
    measurement: Measurement
    log_probabilities: Path


def _floors(
    unquantized: Sequence[Artifact], inputs: EncodedSet, settings: Settings, against: Mapping[str, Path]
) -> dict[str, _Floor]:
    """By the kind of artifact: what its engine alone makes different."""
    floors: dict[str, _Floor] = {}
    for artifact in unquantized:
        kept = inputs.files.folder / f"{UNQUANTIZED}-{artifact.manifest.kind}"
        floors[artifact.manifest.kind] = _Floor(artifact, measure(artifact, inputs, settings, against, kept), kept)
    return floors


def _refuse_quantized(unquantized: Sequence[Artifact], artifacts: Sequence[Artifact]) -> None:
    for artifact in unquantized:
        grids = {one.scheme for one in artifact.manifest.weights if one.scheme not in (None, "f32", "f16", "bf16")}
        if grids:
            told = ", ".join(f"`{scheme}`" for scheme in sorted(map(str, grids)))
            raise ArtifactError(f"`{artifact.path}` has weights in {told}", "export one of the recipe `full`")
        if not any(other.manifest.kind == artifact.manifest.kind for other in artifacts):
            raise ArtifactError(
                f"`{artifact.path}` is unquantized {artifact.manifest.kind}, and no artifact to measure is",
                "name an artifact in the same format",
            )


def facts_of(samples: CalibrationSet, settings: Settings, *, held_out_from_calibration: bool = False) -> SetFacts:
    """What a report says of the samples."""
    return SetFacts(
        name=samples.path.resolve().name,
        sha256=samples.sha256,
        samples=len(samples),
        held_out_from_calibration=held_out_from_calibration,
        images_shuffled=settings.shuffle_images,
        cut_by_engine=settings.engine_cuts,
    )


def environment_of(settings: Settings) -> Environment:
    """This machine, and what is installed."""
    return Environment(
        machine=describe_machine(),
        python=platform.python_version(),
        versions=installed_versions(PACKAGES),
        threads=settings.threads,
    )
