"""Warnings about small and one-sided sample sets, and about their figures."""

import math
from pathlib import Path

import pytest

from mcpmq.dataset import Sample, SampleSet
from mcpmq.evaluate import (
    Estimate,
    calibration_warnings,
    distribution_notes,
    evaluation_warnings,
    small_group_notes,
)
from tests.fake_reports import make_report

LABELS = {"image": "images", "text": "text"}


def set_of(images: int, texts: int) -> SampleSet:
    """Return a set with this many samples with and without an image."""
    with_image = [Sample.from_prompt(f"i{number}", Path("x.png"), f"What? {number}", "!") for number in range(images)]
    return SampleSet(
        Path("photos"),
        (*with_image, *(Sample.from_prompt(f"t{number}", None, f"?{number}", "!") for number in range(texts))),
    )


def kld(value: float, half_width: float) -> Estimate:
    """Return a mean KLD with a symmetric interval."""
    return Estimate(value=value, standard_error=half_width / 2, low=value - half_width, high=value + half_width)


@pytest.mark.parametrize(
    ("images", "texts", "warnings"),
    [
        (40, 24, []),
        (40, 23, ["63 samples, fewer than 64"]),
        (64, 0, ["no sample without an image"]),
        (0, 64, ["no image: vision encoder"]),
        (1, 0, ["1 samples, fewer than 64", "no sample without an image"]),
    ],
)
def test_a_small_or_one_sided_calibration_set_has_a_warning(images: int, texts: int, warnings: list[str]) -> None:
    """The limit is 64 samples; both images and texts are expected."""
    found = list(calibration_warnings(set_of(images, texts)))

    assert len(found) == len(warnings)
    assert all(expected in text for expected, text in zip(warnings, found, strict=True))
    assert all(text.startswith("calibration set `photos`: ") for text in found)


@pytest.mark.parametrize(
    ("images", "texts", "kinds"),
    [(20, 20, []), (19, 20, ["19 samples with an image"]), (20, 1, ["1 sample without an image"]), (20, 0, [])],
)
def test_few_evaluation_samples_of_a_kind_have_a_warning(images: int, texts: int, kinds: list[str]) -> None:
    """The limit is 20 samples; a kind that is not measured has none."""
    found = list(evaluation_warnings(set_of(images, texts)))

    assert len(found) == len(kinds)
    assert all(expected in text for expected, text in zip(kinds, found, strict=True))


def test_notes_have_the_interval_of_small_groups() -> None:
    """A group with 20 samples has no note, and one sample has no interval."""
    klds = {"image": kld(0.01, 0.005), "text": Estimate(value=0.5, standard_error=0, low=math.nan, high=math.nan)}

    assert small_group_notes({"image": 20, "text": 20}, LABELS, klds) == []
    assert small_group_notes({"image": 19, "text": 1}, LABELS, klds) == [
        "images: 19 samples, fewer than 20, the mean KLD is between 0.0050 and 0.0150 nats (95 % interval)",
        "text: 1 sample, fewer than 20, the mean KLD is 0.5000 nats without an interval",
    ]
    assert small_group_notes({"text": 3}, LABELS, {}) == ["text: 3 samples, fewer than 20"]


@pytest.mark.parametrize(
    ("on_calibration", "noted"),
    [
        (kld(0.001, 0.0005), True),
        (kld(0.0025, 0.001), True),
        (kld(0.0035, 0.0005), False),  # less than half
        (kld(0.002, 0.005), False),  # intervals overlap
        (Estimate(value=0.001, standard_error=0, low=math.nan, high=math.nan), False),
    ],
)
def test_another_distribution_has_a_much_larger_kld(on_calibration: Estimate, noted: bool) -> None:
    """The value is more than twice as large, and the intervals are disjoint."""
    difference = make_report(1).artifacts[0].differences["text"].model_copy(update={"kl_divergence": kld(0.006, 0.001)})

    notes = distribution_notes({"text": difference}, {"text": on_calibration}, LABELS)

    assert bool(notes) is noted
    if noted:
        assert "the calibration set is too small or differs from the evaluation set" in notes[0]


def test_groups_of_one_set_only_are_noted() -> None:
    """Text is calibrated and not measured, images are measured and not calibrated."""
    difference = make_report(1).artifacts[0].differences["image"]

    assert distribution_notes({"image": difference}, {"text": kld(1, 0.1)}, LABELS) == [
        "text: in the calibration set only",
        "images: no calibration sample",
    ]


def test_duplicates_are_named(tmp_path: Path) -> None:
    """Both warnings have the number of repeated samples and the first of them."""
    samples = SampleSet(tmp_path, tuple(Sample.from_prompt(str(number), None, "a", "b") for number in range(3)))

    for found in (calibration_warnings(samples), evaluation_warnings(samples)):
        assert any("2 samples repeat another one, `1` that of `0`" in text for text in found)
