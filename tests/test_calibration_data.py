"""The committed data: disjoint sets, and a reference checkpoint that depends on its images."""

from pathlib import Path

import pytest
from PIL import Image

from calibration import make_sets
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.dataset.sample import image_digest
from mcpmq.evaluate import Settings, encode_samples, measure_original

FOLDER = Path(__file__).parent.parent / "calibration"
LARGEST_REFERENCE_NBYTES = 30_000_000


@pytest.fixture(scope="module")
def starter() -> SampleSet:
    """The calibration set."""
    return SampleSet.open(FOLDER / "starter")


@pytest.fixture(scope="module")
def heldout() -> SampleSet:
    """The evaluation set."""
    return SampleSet.open(FOLDER / "heldout")


@pytest.fixture(scope="module")
def reference() -> Checkpoint:
    """The trained checkpoint."""
    return Checkpoint.open(FOLDER / "reference")


def test_sets_are_large_enough(starter: SampleSet, heldout: SampleSet) -> None:
    """The sets have at least 128 and 256 samples, with and without images, with slices, and nonsquare."""
    assert len(starter) >= 128
    assert len(heldout) >= 256
    for samples in (starter, heldout):
        assert {"image", "text", "sliced"} <= {tag for sample in samples for tag in sample.tags}
    assert sum("nonsquare" in sample.tags for sample in heldout) >= 8


def test_sets_are_disjoint(starter: SampleSet, heldout: SampleSet) -> None:
    """No image and no prompt without an image occurs in both sets."""

    def contents(samples: SampleSet) -> set[str]:
        return {image_digest(sample.image) if sample.image else sample.prompt for sample in samples}

    assert not contents(starter) & contents(heldout)


def test_script_generates_the_committed_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script generates the committed texts, tags and pixels; compressed bytes may differ between CPUs."""
    monkeypatch.setattr(make_sets, "ROOT", tmp_path)

    make_sets.main()

    for name in ("starter", "heldout"):
        made, committed = SampleSet.open(tmp_path / name), SampleSet.open(FOLDER / name)
        assert list(map(_content, made)) == list(map(_content, committed))


def _content(sample: Sample) -> tuple[object, ...]:
    if sample.image is None:
        return sample.id, sample.prompt, sample.answer, sample.tags
    assert isinstance(sample.image, Path)
    with Image.open(sample.image) as image:
        return sample.id, sample.prompt, sample.answer, sample.tags, image.size, image.convert("RGB").tobytes()


def test_reference_has_published_layout_and_widths(reference: Checkpoint) -> None:
    """Weights are bf16 shards; language widths are multiples of 256, the vision intermediate size is not one of 32."""
    language, vision = reference.architecture.language, reference.architecture.required_vision

    assert {entry.dtype for entry in reference.entries.values()} == {"BF16"}
    assert (reference.path / "model.safetensors.index.json").is_file()
    assert language.hidden_size % 256 == language.intermediate_size % 256 == 0
    assert vision.intermediate_size % 32 != 0
    assert sum(file.stat().st_size for file in reference.path.iterdir()) <= LARGEST_REFERENCE_NBYTES


def test_reference_depends_on_images(reference: Checkpoint, heldout: SampleSet) -> None:
    """With the images of other samples, answers have at least 2.5 times the perplexity."""
    square = tuple(sample for sample in heldout if sample.image and "nonsquare" not in sample.tags)[::4]
    perplexities = []
    for shuffle in (False, True):
        settings = Settings(threads=1, shuffle_images=shuffle)
        with encode_samples(reference, SampleSet(heldout.path, square), settings) as inputs:
            perplexities.append(
                measure_original(reference, inputs, settings).measurement.groups["image"].perplexity.value
            )

    assert perplexities[1] > 2.5 * perplexities[0]
