"""Warnings about sample sets that are too small or too one-sided for their purpose, and about their figures."""

from collections.abc import Iterator, Mapping

from mcpmq.dataset import SampleSet
from mcpmq.evaluate.schema import Difference, Estimate

MIN_CALIBRATION_SAMPLES, MIN_EVALUATION_SAMPLES = 64, 20
MAX_KLD_RATIO = 2.0  # between the evaluation set and calibration samples


def calibration_warnings(samples: SampleSet) -> Iterator[str]:
    """Yield the reasons why a calibration set may not represent the inputs of the model."""
    images = sum(sample.has_vision for sample in samples)
    name = f"calibration set `{samples.name}`"
    if len(samples) < MIN_CALIBRATION_SAMPLES:
        yield (
            f"{name}: {len(samples)} samples, fewer than {MIN_CALIBRATION_SAMPLES}: the statistics of many columns come"
            " from few inputs, and errors on other inputs are larger"
        )
    yield from _duplicate_warnings(name, samples)
    if images == len(samples):
        yield f"{name}: no sample without an image: the loss on text can be larger than with text samples"
    if not images:
        yield f"{name}: no image: vision encoder and connector get no statistics, and image tokens none in the model"


def evaluation_warnings(samples: SampleSet) -> Iterator[str]:
    """Yield the reasons why the figures of an evaluation set are uncertain."""
    yield from _duplicate_warnings(f"evaluation set `{samples.name}`", samples)
    images = sum(sample.has_vision for sample in samples)
    for count, kind in ((images, "with an image"), (len(samples) - images, "without an image")):
        if 0 < count < MIN_EVALUATION_SAMPLES:
            yield (
                f"evaluation set `{samples.name}`: {count} sample{'s' * (count != 1)} {kind}, fewer than"
                f" {MIN_EVALUATION_SAMPLES}: the intervals of these figures are wide"
            )


def _duplicate_warnings(name: str, samples: SampleSet) -> Iterator[str]:
    if samples.duplicates:
        repeated, first = samples.duplicates[0]
        count = len(samples.duplicates)
        yield f"{name}: {count} sample{'s' * (count != 1)} repeat another one, `{repeated}` that of `{first}`"


def small_group_notes(counts: Mapping[str, int], labels: Mapping[str, str], klds: Mapping[str, Estimate]) -> list[str]:
    """Return a note for every group with too few samples, with the interval of its mean KLD."""
    notes = []
    for group, count in counts.items():
        if count < MIN_EVALUATION_SAMPLES:
            width = f", the mean KLD is {_interval(klds[group])}" if group in klds else ""
            samples = f"{count} sample{'s' * (count != 1)}, fewer than {MIN_EVALUATION_SAMPLES}"
            notes.append(f"{labels[group]}: {samples}{width}")
    return notes


def _interval(kld: Estimate) -> str:
    if kld.low != kld.low:  # of one sample
        return f"{kld.value:.4f} nats without an interval"
    return f"between {kld.low:.4f} and {kld.high:.4f} nats (95 % interval)"


def distribution_notes(
    differences: Mapping[str, Difference], calibration: Mapping[str, Estimate], labels: Mapping[str, str]
) -> list[str]:
    """Return a note for every group whose mean KLD is much higher than on calibration samples.

    The ratio is above MAX_KLD_RATIO and the intervals are disjoint: the calibration set is too small, or its samples
    differ from those of the evaluation set.
    """
    notes = []
    for group, on_calibration in calibration.items():
        if group not in differences:
            notes.append(f"{labels[group]}: in the calibration set only")
            continue
        evaluated = differences[group].kl_divergence
        if evaluated.low > on_calibration.high and evaluated.value > MAX_KLD_RATIO * on_calibration.value:
            notes.append(
                f"{labels[group]}: mean KLD {evaluated.value:.4f} nats, on calibration samples"
                f" {on_calibration.value:.4f}: the calibration set is too small or differs from the evaluation set"
            )
    notes += [f"{labels[group]}: no calibration sample" for group in differences if group not in calibration]
    return notes
