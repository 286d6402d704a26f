"""Samples of a calibration set that are held out for the evaluation, of all kinds."""

from collections.abc import Sequence

from mcpmq.dataset.sample import Sample

HOLDOUT_EVERY = 5
Kind = tuple[int, bool, bool]


def kind_of(sample: Sample) -> Kind:
    """Return the number of images, none, one or several, and whether the sample has videos and audio."""
    return min(len(sample.images), 2), bool(sample.videos), bool(sample.audio)


def samples_by_kind(samples: Sequence[Sample]) -> dict[Kind, list[Sample]]:
    """Return the samples of every kind, in their order."""
    kinds: dict[Kind, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(kind_of(sample), []).append(sample)
    return kinds


def every_fifth(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return every fifth sample, the last one of fewer."""
    return samples[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY] or samples[-1:]


def held_out_samples(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return every fifth sample, with about a fifth of every kind.

    Where every fifth sample of the set has less than half or more than twice the fifth of a kind, every fifth sample
    of this kind takes their place, at least one of two. The only sample of a kind remains for the calibration.
    """
    in_order = {sample.id for sample in samples[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY]}
    chosen = {sample.id for several in samples_by_kind(samples).values() for sample in _of_kind(several, in_order)}
    return tuple(sample for sample in samples if sample.id in (chosen or in_order))


def _of_kind(samples: Sequence[Sample], in_order: set[str]) -> Sequence[Sample]:
    found = [sample for sample in samples if sample.id in in_order]
    if len(samples) == 1:
        return ()
    if len(samples) <= 2 * HOLDOUT_EVERY * len(found) <= 4 * len(samples):
        return found
    return every_fifth(samples)
