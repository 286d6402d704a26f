"""Encoding of an evaluation set: shuffled images and images for the engine's preprocessing."""

from pathlib import Path

from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.evaluate import Settings, encode_samples
from mcpmq.evaluate.inputs import image_permutation


def test_images_are_permuted_among_those_with_equally_many_slices() -> None:
    """Text samples stay in place, and an image stays only if no other image has as many slices."""
    num_slices = [3, 0, 1, 3, 1, 0, 3, 7]
    sources = image_permutation(num_slices)
    assert sorted(sources) == list(range(8))
    assert [num_slices[source] for source in sources] == num_slices
    assert [number for number, source in enumerate(sources) if number == source] == [1, 5, 7]


def test_uncut_images_are_stored_for_engine_preprocessing_only(tiny_checkpoint: Path, mixed_set: SampleSet) -> None:
    """With `engine_preprocessing` an image sample has its image in the size of its file; otherwise none has."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with encode_samples(checkpoint, mixed_set, Settings(threads=1, engine_preprocessing=True)) as inputs:
        images = {one.id: one.image for one in inputs.store}
    with encode_samples(checkpoint, mixed_set, Settings(threads=1)) as inputs:
        assert all(one.image is None for one in inputs.store)
    for sample in mixed_set:
        image = images[sample.id]
        if sample.image is None:
            assert image is None
        else:
            assert image is not None
            with Image.open(sample.image) as file:
                assert image.shape == (file.height, file.width, 3)
