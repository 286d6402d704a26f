"""Encoding of an evaluation set: shuffled images and images for the engine's preprocessing."""

from pathlib import Path

import pytest
from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate import Settings, encode_samples
from mcpmq.evaluate.inputs import Layout, image_permutation


def test_images_are_permuted_among_those_with_equally_many_slices() -> None:
    """Text samples stay in place, and an image stays only if no other image has as many slices."""
    layouts: list[Layout] = [((4, 4, 4),), (), ((4,),), ((4, 4, 4),), ((4,),), (), ((4, 4, 4),), ((4,), (4, 4))]
    sources = image_permutation(layouts)
    assert sorted(sources) == list(range(8))
    assert [layouts[source] for source in sources] == layouts
    assert [number for number, source in enumerate(sources) if number == source] == [1, 5, 7]


@pytest.mark.parametrize(
    ("ids", "note"),
    [
        (["i0", "i1", "i2", "i3", "t0"], "images shuffled among the questions"),
        (
            ["i0", "i1", "i2", "t0"],
            "images shuffled among the questions; 1 kept their own: no other image has as many slices",
        ),
    ],
)
def test_a_note_counts_the_images_that_stay(
    tiny_checkpoint: Path, mixed_set: SampleSet, ids: list[str], note: str
) -> None:
    """Two images have one slice each, two have several; one of them alone keeps its question."""
    samples = SampleSet(mixed_set.path, tuple(one for one in mixed_set if one.id in ids))
    settings = Settings(threads=1, shuffle_images=True)
    with encode_samples(Checkpoint.open(tiny_checkpoint), samples, settings) as inputs:
        assert inputs.notes == (note,)


def test_keys_and_values_of_all_layers_are_counted(tiny_checkpoint: Path, mixed_set: SampleSet) -> None:
    """The tiny model has a key and a value of 64 numbers for 2 heads in 2 layers; unshuffled images have no note."""
    with encode_samples(Checkpoint.open(tiny_checkpoint), mixed_set, Settings(threads=1)) as inputs:
        assert inputs.cached_per_token == (64 * 2 * 2, 64 * 2 * 2)
        assert inputs.notes == ()


def test_uncut_images_are_stored_for_engine_preprocessing_only(tiny_checkpoint: Path, mixed_set: SampleSet) -> None:
    """With `engine_preprocessing` an image sample has its image in the size of its file; otherwise none has."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with encode_samples(checkpoint, mixed_set, Settings(threads=1, engine_preprocessing=True)) as inputs:
        images = {one.id: one.images for one in inputs.store}
    with encode_samples(checkpoint, mixed_set, Settings(threads=1)) as inputs:
        assert all(one.images == () for one in inputs.store)
    for sample in mixed_set:
        shapes = []
        for image in sample.images:
            assert isinstance(image, Path)
            with Image.open(image) as file:
                shapes.append((file.height, file.width, 3))
        assert [image.shape for image in images[sample.id]] == shapes
