"""Measures the original and its artifacts on the same tokens and pixels, each in its own engine and process."""

import platform
from collections import Counter
from collections.abc import Sequence
from math import prod

from mcpmq.artifact import MANIFEST, Artifact, sha256_of
from mcpmq.calibration import CalibrationSet
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, CalibrationError
from mcpmq.evaluate import ORIGINAL, Measurement, Settings, differences, encoded, measure, measure_original
from mcpmq.families.family import LanguageShape
from mcpmq.machine import describe_machine, installed_versions
from mcpmq.report.report import (
    CalibrationFacts,
    Entry,
    Environment,
    KvCacheFacts,
    Report,
    SetFacts,
    SourceFacts,
    WeightFacts,
)

PACKAGES = ("mcpmq", "torch", "transformers", "tokenizers", "numpy", "pillow", "xllamacpp", "onnxruntime")
CONTEXT_TOKENS = 4096  # for which the cache of keys and values is computed


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
        CalibrationError: an artifact was calibrated on some of the samples.
        EngineError: an engine failed.
    """
    for artifact in artifacts:
        _refuse_other_source(checkpoint, artifact)
        if not held_out_from_calibration:
            _refuse_seen_samples(artifact, samples)
    with encoded(checkpoint, samples, settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        against = {ORIGINAL: original.log_probabilities}
        measured = [measure(artifact, inputs, settings, against) for artifact in artifacts]
    shape = checkpoint.architecture.language
    entries = [
        _entry(artifact, measurement, original.measurement, shape)
        for artifact, measurement in zip(artifacts, measured, strict=True)
    ]
    return Report(
        checkpoint=SourceFacts(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256),
        measured_on=SetFacts(
            name=samples.path.resolve().name,
            sha256=samples.sha256,
            samples=len(samples),
            held_out_from_calibration=held_out_from_calibration,
            images_shuffled=settings.shuffle_images,
            cut_by_engine=settings.engine_cuts,
        ),
        original=original.measurement,
        artifacts=tuple(entries),
        environment=_environment(settings),
    )


def _refuse_other_source(checkpoint: Checkpoint, artifact: Artifact) -> None:
    source = artifact.manifest.source
    if source.sha256 != checkpoint.sha256:
        raise ArtifactError(
            f"`{artifact.path}` was made from `{source.name}` ({source.sha256[:12]}), which is not"
            f" `{checkpoint.path}` ({checkpoint.sha256[:12]})",
            "measure it against the checkpoint that it was made from",
        )


def _refuse_seen_samples(artifact: Artifact, samples: CalibrationSet) -> None:
    used = artifact.manifest.calibrated_on
    shared = set(used.fingerprints).intersection(samples.fingerprints) if used else ()
    if used and shared:
        raise CalibrationError(
            f"`{samples.path}` shares {len(shared):,} pictures or texts with `{used.name}`, by which `{artifact.path}`"
            " was rounded",
            "measure on samples that decided nothing",
        )


def _entry(artifact: Artifact, measurement: Measurement, original: Measurement, shape: LanguageShape) -> Entry:
    used = artifact.manifest.calibrated_on
    return Entry(
        name=artifact.path.resolve().name,
        kind=artifact.manifest.kind,
        recipe=str(artifact.manifest.recipe["name"]),
        manifest_sha256=sha256_of(artifact.path / MANIFEST),
        calibrated_on=CalibrationFacts(name=used.name, sha256=used.sha256) if used else None,
        weights=_weights(artifact),
        kv_cache_computed=_kv_cache(artifact, shape),
        measurement=measurement,
        differences=differences(original.samples, measurement.samples, ORIGINAL),
    )


def _weights(artifact: Artifact) -> WeightFacts:
    records, sizes = artifact.manifest.weights, Counter[str]()
    for record in records:
        sizes[record.scheme or f"kept {record.dtype}"] += record.nbytes
    bits = 8 * sizes.total() / sum(prod(record.shape) for record in records)
    return WeightFacts(bits_per_weight=round(bits, 4), nbytes_by_scheme=dict(sizes))


def _kv_cache(artifact: Artifact, shape: LanguageShape) -> KvCacheFacts:
    tokens = min(CONTEXT_TOKENS, shape.context)
    width = 2 if artifact.manifest.kind == "gguf" else 4  # llama.cpp keeps float16, the others float32
    values = 2 * shape.layers * shape.kv_heads * shape.head_width * tokens
    return KvCacheFacts(tokens=tokens, bytes_per_value=width, nbytes=width * values)


def _environment(settings: Settings) -> Environment:
    return Environment(
        machine=describe_machine(),
        python=platform.python_version(),
        versions=installed_versions(PACKAGES),
        threads=settings.threads,
    )
