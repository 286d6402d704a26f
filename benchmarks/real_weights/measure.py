"""Measure artifacts in their engines against the original, by sample."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate import (
    ORIGINAL,
    EncodedInputs,
    Measurement,
    Settings,
    encode_samples,
    measure,
    measure_original,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """A test set, encoded, and the measurement of the original on it."""

    name: str
    inputs: EncodedInputs
    settings: Settings
    original: Measurement
    logprobs: Path

    def measure(self, path: Path) -> Measurement:
        """Measure an artifact, also one made from equivalent or replaced weights; the result is kept beside it."""
        file = measurement_file(path, self.name)
        if not file.is_file():
            found = measure(Artifact.open(path), self.inputs, self.settings, {ORIGINAL: self.logprobs})
            file.write_text(found.model_dump_json())
        return Measurement.model_validate_json(file.read_bytes())


def measurement_file(artifact: Path, test: str) -> Path:
    """Return the file with the measurement of an artifact on a test set."""
    return artifact.parent / f"{artifact.name}-{test}.json"


@contextmanager
def open_bench(model: Path, test: Path, settings: Settings) -> Iterator[Bench]:
    """Encode a test set and measure the original, or read its cached measurement."""
    checkpoint = Checkpoint.open(model)
    with encode_samples(checkpoint, SampleSet.open(test), settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        yield Bench(test.name, inputs, settings, original.measurement, original.logprobs)


def kl_divergence_sums(measurement: Measurement) -> list[float]:
    """Return the sum of KL(original || artifact) over the answer tokens of every sample, in nats."""
    return [float(f"{math.fsum(one.compared[ORIGINAL].kl_divergences):.8g}") for one in measurement.samples]


def mean_by_kind(measurement: Measurement) -> dict[str, float]:
    """Return the mean KL divergence of every kind of text; the kind is the first word of a sample's id."""
    found: dict[str, list[float]] = {}
    for one in measurement.samples:
        found.setdefault(one.id.partition("-")[0], []).extend(one.compared[ORIGINAL].kl_divergences)
    return {kind: float(np.mean(values)) for kind, values in sorted(found.items())}
