"""Samples of a calibration set whose divergences are compared with those of an evaluation set."""

from collections import defaultdict

from mcpmq.dataset import HOLDOUT_EVERY, Sample, SampleSet

MAX_SAMPLES = 48


def calibration_samples(calibration: SampleSet) -> SampleSet:
    """Return every fifth sample of each kind, and at least one, at most 48 in all and evenly spread.

    A kind is a number of images, none, one or several, with or without videos and audio: each group of the set is
    measured, also a rare one, in any order of the samples.
    """
    kinds: dict[tuple[int, bool, bool], list[Sample]] = defaultdict(list)
    for sample in calibration:
        kinds[min(len(sample.images), 2), bool(sample.videos), bool(sample.audio)].append(sample)
    most = max(1, MAX_SAMPLES // len(kinds))
    chosen = {sample.id for several in kinds.values() for sample in _every_fifth(several, most)}
    return SampleSet(calibration.path, tuple(sample for sample in calibration if sample.id in chosen))


def _every_fifth(samples: list[Sample], most: int) -> list[Sample]:
    held_out = samples[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY] or samples[-1:]
    return held_out[:: -(-len(held_out) // most)]
