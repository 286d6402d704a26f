"""Measure artifacts in their engines against the original, and compare variants by sample."""

from collections.abc import Iterator, Sequence
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
    Estimate,
    Measurement,
    Settings,
    encode_samples,
    measure,
    measure_original,
)
from mcpmq.evaluate.bootstrap import CONFIDENCE, resample_counts

Values = Sequence[Sequence[float]]  # a value for every token of every sample


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


def kl_divergences(measurement: Measurement) -> Values:
    """Return KL(original || artifact) of every answer token of every sample, in nats."""
    return [one.compared[ORIGINAL].kl_divergences for one in measurement.samples]


def mean_ratio(values: Values, base: Values) -> Estimate:
    """Return the ratio of two means over all tokens; each bootstrap resample has the same samples of both.

    Raises:
        ValueError: the two have different numbers of tokens.
    """
    if list(map(len, values)) != list(map(len, base)):
        raise ValueError("the two were measured on different tokens")
    sums, base_sums = (np.array([sum(one) for one in part]) for part in (values, base))
    drawn = resample_counts(len(sums)).astype(np.float64)
    ratios = (drawn @ sums) / (drawn @ base_sums)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(sums.sum() / base_sums.sum())
    return Estimate(value=value, standard_error=float(ratios.std(ddof=1)), low=float(low), high=float(high))


def mean_by_kind(measurement: Measurement) -> dict[str, float]:
    """Return the mean KL divergence of every kind of text; the kind is the first word of a sample's id."""
    found: dict[str, list[float]] = {}
    for one in measurement.samples:
        found.setdefault(one.id.partition("-")[0], []).extend(one.compared[ORIGINAL].kl_divergences)
    return {kind: float(np.mean(values)) for kind, values in sorted(found.items())}
