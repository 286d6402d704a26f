"""Measures the original and its artifacts on the same tokens and pixels, each in its own engine and process."""

import platform
from collections.abc import Sequence

from mcpmq.artifact import Artifact
from mcpmq.calibration import CalibrationSet
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import ORIGINAL, Measurement, Settings, differences, encoded, measure, measure_original
from mcpmq.machine import describe_machine, installed_versions
from mcpmq.report.report import Entry, Environment, Report, SetFacts, SourceFacts

PACKAGES = ("mcpmq", "torch", "transformers", "tokenizers", "numpy", "pillow", "xllamacpp", "onnxruntime")


def compare(
    checkpoint: Checkpoint,
    artifacts: Sequence[Artifact],
    samples: CalibrationSet,
    settings: Settings,
    *,
    held_out_from_calibration: bool = False,
) -> Report:
    """Measure the original and every artifact on the same tokens and pixels, each in its own engine and process.

    Raises:
        ArtifactError: an artifact was made from another checkpoint, or its files changed.
        EngineError: an engine failed.
    """
    for artifact in artifacts:
        refuse_other_source(checkpoint, artifact)
    with encoded(checkpoint, samples, settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        against = {ORIGINAL: original.log_probabilities}
        measured = [measure(artifact, inputs, settings, against) for artifact in artifacts]
    entries = [_entry(*pair, original.measurement) for pair in zip(artifacts, measured, strict=True)]
    return Report(
        checkpoint=SourceFacts(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256),
        measured_on=facts_of(samples, settings, held_out_from_calibration=held_out_from_calibration),
        original=original.measurement,
        artifacts=tuple(entries),
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


def _entry(artifact: Artifact, measurement: Measurement, original: Measurement) -> Entry:
    return Entry(
        name=artifact.path.resolve().name,
        kind=artifact.manifest.kind,
        recipe=str(artifact.manifest.recipe["name"]),
        measurement=measurement,
        differences=differences(original.samples, measurement.samples, ORIGINAL),
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
