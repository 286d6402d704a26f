"""Measuring: the estimates, the kinds, the same inputs for all, the cache, shuffled images."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mcpmq.calibration import CalibrationSet
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.evaluate import Estimate, Measurement, Settings, encoded, measure, paired, shuffled
from mcpmq.quantized import Quantized
from mcpmq.runners import process

ONE_THREAD = Settings(threads=1)
Clusters = st.lists(st.lists(st.floats(0, 20), min_size=1, max_size=5), min_size=2, max_size=12)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def original(checkpoint: Checkpoint, mixed_set: CalibrationSet) -> Measurement:
    """The tiny checkpoint, measured once for all tests here."""
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs:
        return measure(checkpoint, inputs, ONE_THREAD)


@given(Clusters)
@settings(max_examples=60, deadline=None)
def test_the_mean_is_over_tokens_and_its_error_over_samples(clusters: list[list[float]]) -> None:
    """The formula written out by hand, loop by loop."""
    estimate = Estimate.of(clusters)
    tokens = [value for one in clusters for value in one]
    mean = sum(tokens) / len(tokens)
    squares = sum(sum(value - mean for value in one) ** 2 for one in clusters)
    count = len(clusters)
    assert estimate.mean == pytest.approx(mean)
    expected = math.sqrt(count / (count - 1) * squares) / len(tokens)
    assert estimate.standard_error == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_error_is_what_repeating_the_experiment_shows() -> None:
    """Over many simulated sets, whose tokens hang together within a sample, the mean spreads as the error tells."""
    generator = np.random.default_rng(0)

    def draw() -> Estimate:
        lengths, levels = generator.integers(1, 9, 60), generator.normal(2, 1, 60)
        return Estimate.of(
            [list(generator.normal(level, 0.3, size)) for size, level in zip(lengths, levels, strict=True)]
        )

    drawn = [draw() for _ in range(400)]
    assert np.std([one.mean for one in drawn]) == pytest.approx(np.mean([one.standard_error for one in drawn]), rel=0.1)


def test_a_perplexity_has_the_error_of_its_logarithm() -> None:
    """By the delta method; a loss beyond what can be raised is infinite, not a crash."""
    perplexity = Estimate(mean=2.0, standard_error=0.01).exponential()
    assert perplexity.mean == pytest.approx(math.e**2)
    assert perplexity.standard_error == pytest.approx(math.e**2 * 0.01)
    assert Estimate(mean=5000.0, standard_error=1.0).exponential().mean == math.inf


def test_one_sample_has_no_error_and_survives_json() -> None:
    """What is not known is not zero, and valid JSON holds it."""
    estimate = Estimate.of([[1.0, 2.0]])
    again = Estimate.model_validate_json(estimate.model_dump_json())
    assert again.mean == 1.5
    assert math.isnan(again.standard_error)


def test_kinds_tokens_and_bytes_are_counted(
    original: Measurement, checkpoint: Checkpoint, mixed_set: CalibrationSet
) -> None:
    """Images, tagged images and text are apart; answers' tokens are counted with the end of the turn; bytes by part."""
    assert {kind: one.samples for kind, one in original.kinds.items()} == {"image": 4, "nonsquare": 2, "text": 3}
    assert list(original.kinds) == ["image", "nonsquare", "text"]
    assert sum(one.tokens for one in original.kinds.values()) == sum(len(one.losses) for one in original.samples)
    assert [one.id for one in original.samples] == [sample.id for sample in mixed_set]
    weights = {name: nbytes for name, nbytes in original.nbytes_by_component.items() if name != "model"}
    assert sum(weights.values()) == checkpoint.nbytes
    assert original.nbytes_by_component["model"] > 1000
    image = [loss for one in original.samples if one.kind == "image" for loss in one.losses]
    assert original.kinds["image"].perplexity.mean == pytest.approx(math.exp(np.mean(image)))
    assert original.engine.startswith("PyTorch 2.")


def test_a_quantized_artifact_is_measured_on_the_very_same_inputs(
    original: Measurement, checkpoint: Checkpoint, mixed_set: CalibrationSet, tiny_full: Quantized, tiny_int4: Quantized
) -> None:
    """Nothing quantized: no token differs. Quantized: differences are paired, token by token."""
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs:
        full = measure(tiny_full.artifact, inputs, ONE_THREAD)
        small = measure(tiny_int4.artifact, inputs, ONE_THREAD)
    assert full.samples == original.samples
    assert all(one == Estimate(mean=0, standard_error=0) for one in paired(original, full).values())
    for kind, increase in paired(original, small).items():
        before, after = (one.kinds[kind].loss.mean for one in (original, small))
        assert increase.mean == pytest.approx(after - before)
        assert increase.standard_error < small.kinds[kind].loss.standard_error
    assert small.nbytes == sum(record.nbytes for record in tiny_int4.artifact.manifest.files)


def test_measurements_of_other_samples_cannot_be_paired(original: Measurement) -> None:
    """Neither fewer samples nor answers of another length."""
    with pytest.raises(ArtifactError, match="different samples"):
        paired(original, original.model_copy(update={"samples": original.samples[:-1]}))


def test_a_changed_artifact_is_not_measured(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, tiny_int4: Quantized, tmp_path: Path
) -> None:
    """A byte that is not the one that was written is found before the engine starts."""
    changed = tmp_path / "changed"
    shutil.copytree(tiny_int4.path, changed)
    with (changed / "blocks" / "head.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    artifact = Quantized.open(changed).artifact
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs, pytest.raises(ArtifactError, match=r"head.safetensors"):
        measure(artifact, inputs, ONE_THREAD)


def test_an_original_is_measured_once(
    original: Measurement,
    checkpoint: Checkpoint,
    mixed_set: CalibrationSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second time the figures come from the cache, which says so; other inputs or threads are measured anew."""
    caching = Settings(threads=1, cache=tmp_path / "cache")
    with encoded(checkpoint, mixed_set, caching) as inputs:
        first = measure(checkpoint, inputs, caching)
        monkeypatch.setattr(process, "ENGINES", {})  # nothing can be started any more
        second = measure(checkpoint, inputs, caching)
        with pytest.raises(KeyError):
            measure(checkpoint, inputs, Settings(threads=2, cache=tmp_path / "cache"))
    assert not first.machine_dependent.reused
    assert second.machine_dependent.reused
    assert first.samples == second.samples == original.samples
    next((tmp_path / "cache").glob("*.json")).write_text("{}")
    with encoded(checkpoint, mixed_set, caching) as inputs, pytest.raises(KeyError):
        measure(checkpoint, inputs, caching)


def test_shuffled_images_are_others_images_of_as_many_slices() -> None:
    """A permutation within equal counts; text stays out of it; nobody keeps its own unless it is alone."""
    slices = [3, 0, 1, 3, 1, 0, 3, 7]
    givers = shuffled(slices)
    assert sorted(givers) == list(range(8))
    assert [slices[giver] for giver in givers] == slices
    assert [number for number, giver in enumerate(givers) if number == giver] == [1, 5, 7]


def test_shuffling_changes_what_images_say_and_not_text(
    original: Measurement, checkpoint: Checkpoint, mixed_set: CalibrationSet
) -> None:
    """Losses of image answers differ, those of text are the same, and the notes tell of it."""
    shuffling = Settings(threads=1, shuffle_images=True)
    with encoded(checkpoint, mixed_set, shuffling) as inputs:
        other = measure(checkpoint, inputs, shuffling)
    assert other.kinds["text"] == original.kinds["text"]
    assert other.kinds["image"] != original.kinds["image"]
    assert "shuffled" in other.notes[0]


def test_images_go_along_uncut_only_when_the_engine_is_to_cut_them(
    checkpoint: Checkpoint, mixed_set: CalibrationSet
) -> None:
    """Then every image sample has its image, as large as its file says, and texts have none."""
    with encoded(checkpoint, mixed_set, Settings(threads=1, engine_cuts=True)) as inputs:
        whole = {one.id: one.image for one in inputs.files}
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs:
        assert all(one.image is None for one in inputs.files)
    for sample in mixed_set:
        image = whole[sample.id]
        if sample.image is None:
            assert image is None
        else:
            assert image is not None
            with Image.open(sample.image) as drawn:
                assert image.shape == (drawn.height, drawn.width, 3)


def test_a_failing_engine_is_an_error_for_the_user(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No report is made of half a measurement."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs, pytest.raises(EngineError, match="after 0 of 9"):
        measure(checkpoint, inputs, ONE_THREAD)


def test_settings_follow_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All cores unless told otherwise; the cache lies in the user's own cache folder or nowhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings.of(3, cache=True).threads == 3
    assert Settings.of(None, cache=False).threads >= 1
    assert Settings.of(None, cache=True).cache == tmp_path / "mcpmq"
    assert Settings.of(None, cache=False).cache is None
