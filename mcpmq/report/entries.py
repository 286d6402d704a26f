"""What a report says of one artifact that was measured."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.evaluate import ORIGINAL, UNQUANTIZED, Measurement, differences
from mcpmq.report.layer_errors import layer_picture
from mcpmq.report.report import CalibrationFacts, Entry, WeightFacts
from mcpmq.report.worst_samples import worst_samples


@dataclass(frozen=True, slots=True)
class Seen:
    """What all artifacts were measured on and are compared with."""

    checkpoint: Checkpoint
    samples: CalibrationSet
    answers: dict[str, list[int]]  # token ids by the id of the sample
    original: Measurement
    unquantized: Mapping[str, Measurement]  # by the kind of artifact


def entry_of(seen: Seen, artifact: Artifact, measurement: Measurement) -> Entry:
    """Its measurement, and how it differs from the original and from the unquantized artifact in its engine."""
    used, floor = artifact.manifest.calibrated_on, seen.unquantized.get(artifact.manifest.kind)
    by_quantization = None
    if floor and floor is not measurement:
        by_quantization = differences(floor.samples, measurement.samples, UNQUANTIZED)
    return Entry(
        name=artifact.path.resolve().name,
        kind=artifact.manifest.kind,
        recipe=str(artifact.manifest.recipe["name"]),
        sha256=artifact.sha256,
        calibrated_on=CalibrationFacts(name=used.name, sha256=used.sha256) if used else None,
        weights=_weights(artifact),
        measurement=measurement,
        differences=differences(seen.original.samples, measurement.samples, ORIGINAL),
        by_quantization=by_quantization,
        layers=layer_picture(seen.checkpoint, artifact),
        worst=worst_samples(seen.checkpoint, seen.samples, seen.answers, seen.original, measurement),
    )


def _weights(artifact: Artifact) -> WeightFacts:
    records, sizes = artifact.manifest.weights, Counter[str]()
    for record in records:
        sizes[record.scheme or f"kept {record.dtype}"] += record.nbytes
    bits = 8 * sizes.total() / sum(prod(record.shape) for record in records)
    return WeightFacts(bits_per_weight=round(bits, 4), nbytes_by_scheme=dict(sizes))
