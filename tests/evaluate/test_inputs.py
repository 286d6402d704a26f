"""Encoding samples once for every engine: shuffled images, and images left whole."""

from pathlib import Path

from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.evaluate import Settings, encoded
from mcpmq.evaluate.inputs import shuffled


def test_shuffled_images_are_others_images_of_as_many_slices() -> None:
    """A permutation within equal counts; text stays out of it; nobody keeps its own unless it is alone."""
    slices = [3, 0, 1, 3, 1, 0, 3, 7]
    givers = shuffled(slices)
    assert sorted(givers) == list(range(8))
    assert [slices[giver] for giver in givers] == slices
    assert [number for number, giver in enumerate(givers) if number == giver] == [1, 5, 7]


def test_images_go_along_uncut_only_when_the_engine_is_to_cut_them(
    tiny_checkpoint: Path, mixed_set: CalibrationSet
) -> None:
    """Then every image sample has its image, as large as its file says, and texts have none."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with encoded(checkpoint, mixed_set, Settings(threads=1, engine_cuts=True)) as inputs:
        whole = {one.id: one.image for one in inputs.files}
    with encoded(checkpoint, mixed_set, Settings(threads=1)) as inputs:
        assert all(one.image is None for one in inputs.files)
    for sample in mixed_set:
        image = whole[sample.id]
        if sample.image is None:
            assert image is None
        else:
            assert image is not None
            with Image.open(sample.image) as drawn:
                assert image.shape == (drawn.height, drawn.width, 3)
