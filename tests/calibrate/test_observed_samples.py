"""The samples that calibrate an encoder with many inputs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.artifact import Artifact
from mcpmq.calibrate import observed_samples
from mcpmq.calibrate.observed_samples import ObservedSamples, SampleSize, spread
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.families.inputs import Inputs
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.rounding.stats import AUDIO, VISION


def size(patches: int, frames: int = 0) -> SampleSize:
    """Return the size of a sample."""
    return SampleSize("image" if patches else "text", {VISION: patches, AUDIO: frames})


def test_all_samples_calibrate_a_block_with_few_inputs() -> None:
    """16,384 inputs, or 8 for every column, are not too many; those of the language model never are."""
    assert ObservedSamples([size(8_192)] * 2, frozenset()).of_block("vision", 1152) == {0, 1}
    assert ObservedSamples([size(20_000)] * 2, frozenset()).of_block("projector", 5000) == {0, 1}
    assert ObservedSamples([size(30_000)] * 2, frozenset()).of_block("projector", 5000) == {0}
    assert ObservedSamples([size(10**9)] * 2, frozenset()).of_block("language", 8) == {0, 1}
    assert ObservedSamples([size(10**9)] * 2, frozenset()).of_block("head", 8) == {0, 1}


def test_a_part_of_the_held_out_and_of_the_other_samples_calibrates_a_block_with_many() -> None:
    """A tenth of 40 x 4,096 patches is four samples, of which one is held out; those without an image do not count."""
    sizes = [size(4_096), size(0)] * 40
    found = ObservedSamples(sizes, frozenset(range(0, 80, 10))).of_block("vision", 1152)

    assert len(found) == 4
    assert len([one for one in found if one % 10 == 0]) == 1
    assert all(one % 2 == 0 for one in found)
    assert max(found) - min(found) > 30


def test_audio_and_images_are_counted_separately() -> None:
    """Frames of audio do not limit the samples of the vision encoder."""
    observed = ObservedSamples([size(100, 60_000)] * 4, frozenset())

    assert len(observed.of_block("audio", 512)) == 1
    assert observed.of_block("vision", 512) == {0, 1, 2, 3}


@given(st.lists(st.integers(0, 1000), max_size=60), st.floats(0, 1))
def test_chosen_samples_have_their_share_of_the_inputs(counts: list[int], share: float) -> None:
    """The sum differs by at most the largest sample; samples without inputs are not chosen, but at least one is."""
    chosen = spread(range(len(counts)), counts, share)

    assert chosen == sorted(set(chosen))
    assert all(counts[one] for one in chosen)
    assert bool(chosen) == any(counts)
    if chosen:
        assert abs(sum(counts[one] for one in chosen) - share * sum(counts)) <= max(counts)


def test_the_inputs_of_a_sample_are_patches_and_frames(small_checkpoint: Path) -> None:
    """Patches of all slices and frames of a video; a frame of the audio encoder has 20 ms, 320 samples."""
    architecture = Checkpoint.open(small_checkpoint).architecture
    assert architecture.vision is not None
    side = architecture.vision.patch_size
    slices = np.zeros((2 * side, 3 * side, 3), np.uint8), np.zeros((2, side, 5 * side, 3), np.uint8)
    audio = (np.zeros(16_000, np.float32),)
    inputs = Inputs("a", np.arange(4), 2, slices, np.zeros((2, 2), np.int64), audio=audio)

    found = SampleSize.of(inputs, architecture)

    assert found == SampleSize("audio-image", {VISION: 6 + 5, AUDIO: 50})


@pytest.mark.parametrize("targets", ["layer", "model"])
def test_vision_layers_have_a_part_of_the_patches(
    targets: str, small_checkpoint: Path, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of vision layers have fewer tokens than before, those of language layers as many."""
    weights = {"*": "keep", "vision.layers.*": "int4-g32", "language.layers.*": "int4-g32"}
    fields = {"name": "part", "method": "gptq", "targets": targets, "weights": weights}
    plan = make_plan(Checkpoint.open(small_checkpoint), Recipe.model_validate(fields))
    tokens = []
    for name in ("all", "part"):
        quantize(plan, tmp_path / name, mixed_set, device="cpu")
        tokens.append(tokens_of(tmp_path / name))
        monkeypatch.setattr(observed_samples, "MIN_ENCODER_INPUTS", 40)
        monkeypatch.setattr(observed_samples, "ENCODER_INPUTS_PER_COLUMN", 0)

    before, after = tokens
    assert after["language"] == before["language"]
    assert 0 < after["vision"] < before["vision"] / 1.5


def tokens_of(folder: Path) -> dict[str, int]:
    """Return the calibration tokens of the first matrix of both components."""
    weights = Artifact.open(folder).manifest.weights
    found = {one.name: sum(one.calibration_tokens.values()) for one in weights if one.calibration_tokens}
    return {name: found[f"{name}.layers.0.attention.q"] for name in ("vision", "language")}
