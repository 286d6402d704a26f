"""Measurements: groups, paired differences, cache and shuffled images."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.evaluate import (
    ORIGINAL,
    Estimate,
    Measurement,
    Settings,
    cache,
    differences,
    encode_samples,
    measure,
    measure_original,
)
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners import launcher

ONE_THREAD = Settings(threads=1)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def original(checkpoint: Checkpoint, mixed_set: SampleSet) -> Measurement:
    """The measurement of the tiny checkpoint, shared by all tests."""
    with encode_samples(checkpoint, mixed_set, ONE_THREAD) as inputs:
        return measure_original(checkpoint, inputs, ONE_THREAD).measurement


def test_groups_tokens_and_bytes_are_counted(
    original: Measurement, checkpoint: Checkpoint, mixed_set: SampleSet
) -> None:
    """Images, nonsquare images and text are separate groups; end-of-turn tokens count; bytes are by component."""
    assert {group: one.samples for group, one in original.groups.items()} == {"image": 4, "nonsquare": 2, "text": 3}
    assert list(original.groups) == ["image", "nonsquare", "text"]
    assert sum(one.tokens for one in original.groups.values()) == sum(len(one.losses) for one in original.samples)
    assert [one.id for one in original.samples] == [sample.id for sample in mixed_set]
    weights = {name: nbytes for name, nbytes in original.nbytes_by_component.items() if name != "model"}
    assert sum(weights.values()) == checkpoint.nbytes
    assert original.nbytes_by_component["model"] > 1000
    image = [loss for one in original.samples if one.group == "image" for loss in one.losses]
    assert original.groups["image"].perplexity.value == pytest.approx(math.exp(np.mean(image)))
    assert original.engine.startswith("PyTorch 2.")


def test_a_quantized_model_is_measured_on_the_same_inputs(
    original: Measurement,
    checkpoint: Checkpoint,
    mixed_set: SampleSet,
    tiny_full: QuantizedModel,
    tiny_int4: QuantizedModel,
) -> None:
    """Without quantization no token differs; with quantization the differences are paired by token."""
    with encode_samples(checkpoint, mixed_set, ONE_THREAD) as inputs:
        against = {ORIGINAL: measure_original(checkpoint, inputs, ONE_THREAD).logprobs}
        full = measure(tiny_full.artifact, inputs, ONE_THREAD, against)
        small = measure(tiny_int4.artifact, inputs, ONE_THREAD, against)
    assert [one.losses for one in full.samples] == [one.losses for one in original.samples]
    for one in differences(original.samples, full.samples, ORIGINAL).values():
        assert one.loss_increase == Estimate(value=0, standard_error=0, low=0, high=0)
        assert one.kl_divergence_largest < 1e-6
        assert one.greedy_agreement.low == 1
    for group, difference in differences(original.samples, small.samples, ORIGINAL).items():
        before, after = (one.groups[group].loss.value for one in (original, small))
        assert difference.loss_increase.value == pytest.approx(after - before, abs=1e-6)
        assert difference.loss_increase.standard_error < small.groups[group].loss.standard_error
        assert difference.kl_divergence.low > 1e-5
    assert small.nbytes == sum(record.nbytes for record in tiny_int4.artifact.manifest.files)


def test_a_changed_artifact_is_an_error(
    checkpoint: Checkpoint, mixed_set: SampleSet, tiny_int4: QuantizedModel, tmp_path: Path
) -> None:
    """A changed byte is found before the engine starts."""
    changed = tmp_path / "changed"
    shutil.copytree(tiny_int4.path, changed)
    with (changed / "blocks" / "head.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    artifact = QuantizedModel.open(changed).artifact
    with (
        encode_samples(checkpoint, mixed_set, ONE_THREAD) as inputs,
        pytest.raises(ArtifactError, match=r"head.safetensors"),
    ):
        measure(artifact, inputs, ONE_THREAD)


def test_an_original_is_measured_once_and_cached(
    original: Measurement,
    checkpoint: Checkpoint,
    mixed_set: SampleSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second result is marked as cached; another number of threads or a damaged entry causes a new measurement."""
    caching = Settings(threads=1, cache_folder=tmp_path / "cache")
    with encode_samples(checkpoint, mixed_set, caching) as inputs:
        first = measure_original(checkpoint, inputs, caching)
        monkeypatch.setattr(launcher, "ENGINES", {})  # no engine can be started
        second = measure_original(checkpoint, inputs, caching)
        with pytest.raises(KeyError):
            measure_original(checkpoint, inputs, Settings(threads=2, cache_folder=tmp_path / "cache"))
    assert not first.measurement.machine_dependent.from_cache
    assert second.measurement.machine_dependent.from_cache
    assert first.measurement.samples == second.measurement.samples == original.samples
    assert first.logprobs == second.logprobs
    next((tmp_path / "cache").glob("*/measurement.json")).write_text("{}")
    with encode_samples(checkpoint, mixed_set, caching) as inputs, pytest.raises(KeyError):
        measure_original(checkpoint, inputs, caching)


def test_logprobs_larger_than_the_cache_are_not_cached(
    checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is in the temporary folder of the inputs and is removed with it."""
    monkeypatch.setattr(cache, "MAX_CACHE_NBYTES", 1000)
    caching = Settings(threads=1, cache_folder=tmp_path / "cache")
    with encode_samples(checkpoint, mixed_set, caching) as inputs:
        file = measure_original(checkpoint, inputs, caching).logprobs
        assert file.stat().st_size > 1000
    assert not file.exists()
    assert not (tmp_path / "cache").exists()


def test_shuffled_images_change_image_results_only(
    original: Measurement, checkpoint: Checkpoint, mixed_set: SampleSet
) -> None:
    """Results of image groups differ, those of text are equal, and a note reports the shuffling."""
    shuffling = Settings(threads=1, shuffle_images=True)
    with encode_samples(checkpoint, mixed_set, shuffling) as inputs:
        other = measure_original(checkpoint, inputs, shuffling).measurement
    assert other.groups["text"] == original.groups["text"]
    assert other.groups["image"] != original.groups["image"]
    assert "shuffled" in other.notes[0]


def test_a_failed_engine_is_an_error(
    checkpoint: Checkpoint, mixed_set: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process that cannot start raises an EngineError."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with encode_samples(checkpoint, mixed_set, ONE_THREAD) as inputs, pytest.raises(EngineError, match="after 0 of 9"):
        measure_original(checkpoint, inputs, ONE_THREAD)
