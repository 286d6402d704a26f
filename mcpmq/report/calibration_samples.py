"""Samples of a calibration set whose divergences are compared with those of an evaluation set."""

from mcpmq.dataset import SampleSet
from mcpmq.dataset.holdout import every_fifth, samples_by_kind

MAX_SAMPLES = 48


def calibration_samples(calibration: SampleSet) -> SampleSet:
    """Return every fifth sample of each kind, and at least one, at most 48 in all and evenly spread.

    Each group of the set is measured, also a rare one, in any order of the samples.
    """
    kinds = samples_by_kind(calibration.samples)
    most = max(1, MAX_SAMPLES // len(kinds))
    spread = (several[:: -(-len(several) // most)] for several in map(every_fifth, kinds.values()))
    chosen = {sample.id for several in spread for sample in several}
    return SampleSet(calibration.path, tuple(sample for sample in calibration if sample.id in chosen))
