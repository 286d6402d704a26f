"""Held-out samples of a calibration set: a fifth of every kind, in any order of the set."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from mcpmq.dataset import Audio, Part, Sample, SampleSet, Turn, Video
from mcpmq.dataset.holdout import held_out_samples, kind_of

STARTER = Path(__file__).parent.parent.parent / "calibration" / "starter"
IMAGE = Path("image.png")
PARTS: dict[str, tuple[Part, ...]] = {
    "text": (),
    "image": (IMAGE,),
    "images": (IMAGE, IMAGE),
    "video": (Video(Path("clip.mp4")),),
    "audio": (Audio(Path("speech.wav")),),
}


def samples_of(kinds: list[str]) -> list[Sample]:
    return [
        Sample(f"{number}-{kind}", (Turn("user", (*PARTS[kind], "What?")), Turn("assistant", ("red",))))
        for number, kind in enumerate(kinds)
    ]


def counts(samples: list[Sample] | tuple[Sample, ...]) -> Counter[str]:
    return Counter(sample.id.partition("-")[2] for sample in samples)


@pytest.mark.parametrize("kind", PARTS)
def test_a_kind_is_that_of_images_videos_and_audio(kind: str) -> None:
    """One image, several images, videos, audio and texts are kinds of their own."""
    [sample] = samples_of([kind])

    assert [other for other in PARTS if kind_of(samples_of([other])[0]) == kind_of(sample)] == [kind]


def test_a_set_whose_fifth_samples_are_texts_has_held_out_images() -> None:
    """A periodic order would give an evaluation set of texts only; a fifth of both kinds is held out."""
    samples = samples_of([*(["image"] * 4), "text"] * 10)

    held_out = held_out_samples(samples)

    assert counts(held_out) == {"image": 8, "text": 2}
    assert list(held_out) == [sample for sample in samples if sample in held_out]


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_is_held_out_in_any_order(seed: int) -> None:
    """Between half and twice of a fifth of each kind is held out, and at least one of two samples."""
    kinds = ["text"] * 40 + ["image"] * 60 + ["images"] * 11 + ["video"] * 5 + ["audio"] * 2
    Random(seed).shuffle(kinds)
    samples = samples_of(kinds)

    held_out = counts(held_out_samples(samples))

    assert held_out.keys() == PARTS.keys()
    for kind, count in Counter(kinds).items():
        assert count / 10 <= held_out[kind] <= max(1, 2 * count / 5)
    assert held_out_samples(samples) == held_out_samples(samples)


def test_the_only_sample_of_a_kind_remains_for_the_calibration() -> None:
    """The fifth sample is the only one with an image: it is not held out."""
    assert counts(held_out_samples(samples_of([*(["text"] * 4), "image", *(["text"] * 5)]))) == {"text": 1}


def test_samples_of_as_many_kinds_are_held_out_in_their_order() -> None:
    """Five samples of five kinds: the fifth is held out, because an evaluation needs one."""
    samples = samples_of(list(PARTS))

    assert held_out_samples(samples) == (samples[4],)


def test_the_starter_set_is_split_in_its_order() -> None:
    """Its fifth samples have about a fifth of images and texts, so no others are held out."""
    opened = SampleSet.open(STARTER)

    assert held_out_samples(opened.samples) == opened.samples[4::5]
