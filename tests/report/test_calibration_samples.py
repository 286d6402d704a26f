"""Samples of a calibration set that are measured."""

from pathlib import Path

from mcpmq.dataset import Sample, SampleSet
from mcpmq.report.calibration_samples import MAX_SAMPLES, calibration_samples


def set_of(kinds: str) -> SampleSet:
    """Return a set with a sample for each letter: `i` for one with an image, `t` for one without."""
    images = [Path("x.png") if kind == "i" else None for kind in kinds]
    return SampleSet(
        Path("set"), tuple(Sample.from_prompt(str(at), image, f"{at}", "!") for at, image in enumerate(images))
    )


def chosen(kinds: str) -> list[int]:
    """Return the places of the samples that are measured."""
    return [int(sample.id) for sample in calibration_samples(set_of(kinds))]


def test_every_fifth_sample_of_each_kind_is_measured() -> None:
    """In any order of the set, and at least one of a rare kind."""
    assert chosen("iiiit" * 5) == [5, 11, 17, 23, 24]
    assert chosen("tttttti") == [4, 6]


def test_the_number_of_samples_is_limited() -> None:
    """Each kind has an equal share, and its samples are evenly spread."""
    places = chosen("t" * 990 + "i" * 10)

    assert len(places) <= MAX_SAMPLES
    assert [place for place in places if place >= 990] == [994, 999]
    assert places[:3] == [4, 49, 94]
