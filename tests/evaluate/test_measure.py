"""Measuring: the kinds, the same inputs for all, the cache, shuffled images."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError, EngineError
from mcpmq.evaluate import (
    ORIGINAL,
    Estimate,
    Measurement,
    Settings,
    cache,
    differences,
    encoded,
    measure,
    measure_original,
)
from mcpmq.quantized_model import Quantized
from mcpmq.runners import launcher

ONE_THREAD = Settings(threads=1)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def original(checkpoint: Checkpoint, mixed_set: CalibrationSet) -> Measurement:
    """The tiny checkpoint, measured once for all tests here."""
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs:
        return measure_original(checkpoint, inputs, ONE_THREAD).measurement


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
    assert original.kinds["image"].perplexity.value == pytest.approx(math.exp(np.mean(image)))
    assert original.engine.startswith("PyTorch 2.")


def test_a_quantized_artifact_is_measured_on_the_very_same_inputs(
    original: Measurement, checkpoint: Checkpoint, mixed_set: CalibrationSet, tiny_full: Quantized, tiny_int4: Quantized
) -> None:
    """Nothing quantized: no token differs. Quantized: differences are paired, token by token."""
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs:
        against = {ORIGINAL: measure_original(checkpoint, inputs, ONE_THREAD).log_probabilities}
        full = measure(tiny_full.artifact, inputs, ONE_THREAD, against)
        small = measure(tiny_int4.artifact, inputs, ONE_THREAD, against)
    assert [one.losses for one in full.samples] == [one.losses for one in original.samples]
    for one in differences(original.samples, full.samples, ORIGINAL).values():
        assert one.loss_increase == Estimate(value=0, standard_error=0, low=0, high=0)
        assert one.kl_divergence_largest < 1e-6
        assert one.greedy_agreement.low == 1
    for kind, difference in differences(original.samples, small.samples, ORIGINAL).items():
        before, after = (one.kinds[kind].loss.value for one in (original, small))
        assert difference.loss_increase.value == pytest.approx(after - before, abs=1e-6)
        assert difference.loss_increase.standard_error < small.kinds[kind].loss.standard_error
        assert difference.kl_divergence.low > 1e-5
    assert small.nbytes == sum(record.nbytes for record in tiny_int4.artifact.manifest.files)


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
        first = measure_original(checkpoint, inputs, caching)
        monkeypatch.setattr(launcher, "ENGINES", {})  # nothing can be started any more
        second = measure_original(checkpoint, inputs, caching)
        with pytest.raises(KeyError):
            measure_original(checkpoint, inputs, Settings(threads=2, cache=tmp_path / "cache"))
    assert not first.measurement.machine_dependent.reused
    assert second.measurement.machine_dependent.reused
    assert first.measurement.samples == second.measurement.samples == original.samples
    assert first.log_probabilities == second.log_probabilities
    next((tmp_path / "cache").glob("*/measurement.json")).write_text("{}")
    with encoded(checkpoint, mixed_set, caching) as inputs, pytest.raises(KeyError):
        measure_original(checkpoint, inputs, caching)


def test_what_is_larger_than_the_cache_is_not_kept(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies among the inputs, and goes with them."""
    monkeypatch.setattr(cache, "LIMIT_NBYTES", 1000)
    caching = Settings(threads=1, cache=tmp_path / "cache")
    with encoded(checkpoint, mixed_set, caching) as inputs:
        kept = measure_original(checkpoint, inputs, caching).log_probabilities
        assert kept.stat().st_size > 1000
    assert not kept.exists()
    assert not (tmp_path / "cache").exists()


def test_shuffling_changes_what_images_say_and_not_text(
    original: Measurement, checkpoint: Checkpoint, mixed_set: CalibrationSet
) -> None:
    """Losses of image answers differ, those of text are the same, and the notes tell of it."""
    shuffling = Settings(threads=1, shuffle_images=True)
    with encoded(checkpoint, mixed_set, shuffling) as inputs:
        other = measure_original(checkpoint, inputs, shuffling).measurement
    assert other.kinds["text"] == original.kinds["text"]
    assert other.kinds["image"] != original.kinds["image"]
    assert "shuffled" in other.notes[0]


def test_a_failing_engine_is_an_error_for_the_user(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No report is made of half a measurement."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with encoded(checkpoint, mixed_set, ONE_THREAD) as inputs, pytest.raises(EngineError, match="after 0 of 9"):
        measure_original(checkpoint, inputs, ONE_THREAD)
