"""The committed data is what it claims to be: sets that share nothing, and a checkpoint that sees."""

from pathlib import Path

import pytest
from PIL import Image

from calibration import make_sets
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet, Sample
from mcpmq.evaluate import Settings, encoded, measure_original

FOLDER = Path(__file__).parent.parent / "calibration"
LARGEST_REFERENCE_NBYTES = 30_000_000


@pytest.fixture(scope="module")
def starter() -> CalibrationSet:
    """What one calibrates on."""
    return CalibrationSet.open(FOLDER / "starter")


@pytest.fixture(scope="module")
def heldout() -> CalibrationSet:
    """What one measures on."""
    return CalibrationSet.open(FOLDER / "heldout")


@pytest.fixture(scope="module")
def reference() -> Checkpoint:
    """The trained checkpoint."""
    return Checkpoint.open(FOLDER / "reference")


def test_the_sets_are_large_enough(starter: CalibrationSet, heldout: CalibrationSet) -> None:
    """128 and 256 samples at least, with images, without, sliced, and of sizes that engines treat differently."""
    assert len(starter) >= 128
    assert len(heldout) >= 256
    for samples in (starter, heldout):
        assert {"image", "text", "sliced"} <= {tag for sample in samples for tag in sample.tags}
    assert sum("nonsquare" in sample.tags for sample in heldout) >= 8


def test_the_sets_share_nothing(starter: CalibrationSet, heldout: CalibrationSet) -> None:
    """No image, no question without an image, comes in both."""

    def seen(samples: CalibrationSet) -> set[bytes | str]:
        return {sample.image.read_bytes() if sample.image else sample.prompt for sample in samples}

    assert not seen(starter) & seen(heldout)


def test_the_sets_are_what_their_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question and every pixel; compressed bytes may differ between processors."""
    monkeypatch.setattr(make_sets, "ROOT", tmp_path)

    make_sets.main()

    for name in ("starter", "heldout"):
        made, committed = CalibrationSet.open(tmp_path / name), CalibrationSet.open(FOLDER / name)
        assert list(map(_content, made)) == list(map(_content, committed))


def _content(sample: Sample) -> tuple[object, ...]:
    if sample.image is None:
        return sample.id, sample.prompt, sample.answer, sample.tags
    with Image.open(sample.image) as image:
        return sample.id, sample.prompt, sample.answer, sample.tags, image.size, image.convert("RGB").tobytes()


def test_the_reference_has_the_published_layout_and_awkward_widths(reference: Checkpoint) -> None:
    """bf16 shards with an index; widths that K-quants divide, and one that no block divides, as in the published."""
    language, vision = reference.architecture.language, reference.architecture.vision

    assert {entry.dtype for entry in reference.entries.values()} == {"BF16"}
    assert (reference.path / "model.safetensors.index.json").is_file()
    assert language.hidden % 256 == language.ffn % 256 == 0
    assert vision.ffn % 32 != 0
    assert sum(file.stat().st_size for file in reference.path.iterdir()) <= LARGEST_REFERENCE_NBYTES


def test_the_reference_sees(reference: Checkpoint, heldout: CalibrationSet) -> None:
    """Other samples' images make answers at least two and a half times as perplexing."""
    square = tuple(sample for sample in heldout if sample.image and "nonsquare" not in sample.tags)[::4]
    perplexities = []
    for shuffle in (False, True):
        asked = Settings(threads=1, shuffle_images=shuffle)
        with encoded(reference, CalibrationSet(heldout.path, square), asked) as inputs:
            perplexities.append(measure_original(reference, inputs, asked).measurement.kinds["image"].perplexity.value)

    assert perplexities[1] > 2.5 * perplexities[0]
