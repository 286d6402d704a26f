"""Measurements: groups, paired differences, cache and shuffled images."""

import math
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from mcpmq.artifact import Artifact
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
from mcpmq.evaluate.inputs import EncodedInputs
from mcpmq.evaluate.measure import sample_metrics
from mcpmq.families.inputs import Inputs
from mcpmq.formats.kv_cache import KvCache
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners import launcher
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.launcher import PeakMemory, RunResult
from mcpmq.runners.runner import EngineOptions
from mcpmq.runners.token_metrics import TokenComparison, TokenResults

ONE_THREAD = Settings(threads=1)
MODULE = sys.modules["mcpmq.evaluate.measure"]  # the package has a function of the same name


# --- without an engine ------------------------------------------------------------------------------------------------


def run_result(store: InputsStore) -> RunResult:
    """Return a result of 302 tokens in 7 seconds, with a loss of 0.5 for every answer token."""
    lengths = [len(sample.tokens) - sample.answer_start for sample in store]
    answers = tuple(TokenResults([0.5] * length, [0] * length, {}) for length in lengths)
    return RunResult(
        answers=answers,
        tokens=302,
        seconds=7.0,
        load_seconds=1.23456,
        baseline_rss_bytes=5,
        peak_rss_bytes=9,
        phases=None,
        notes=(),
    )


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every engine by `run_result`."""
    monkeypatch.setattr(MODULE, "run_engine", lambda _, __, store, *___, **____: run_result(store))
    monkeypatch.setattr(
        MODULE, "measure_sequential_peak", lambda *_: PeakMemory(vision_rss_bytes=11, total_rss_bytes=22)
    )


def encoded(folder: Path, *, with_image: bool = False) -> EncodedInputs:
    """Return two samples with answers of three tokens and one; a token has 32 key values and 64 values."""
    store, pixels = InputsStore(folder), (np.zeros((14, 14, 3), np.uint8),) if with_image else ()
    bounds = np.array([[0, 1]] if with_image else np.empty((0, 2)), np.int64)
    store.append(Inputs("a", np.arange(10), 7, pixels, bounds))
    store.append(Inputs("b", np.arange(5), 4, (), np.empty((0, 2), np.int64)))
    groups = "image" if with_image else "text", "text"
    checkpoint, samples = cast(Checkpoint, None), cast(SampleSet, None)  # read for a trimmed vocabulary only
    return EncodedInputs(checkpoint, samples, store, groups, cached_per_token=(32, 64))


def test_losses_and_divergences_are_rounded_to_eight_decimals() -> None:
    """Further digits depend on the machine; tokens are compared with those of the answer."""
    sample = Inputs("a", np.array([3, 4, 5]), 1, (), np.empty((0, 2), np.int64))
    compared = {"m": TokenComparison([0.000000014, 1.000000026], [True, False])}
    metrics = sample_metrics(sample, "text", TokenResults([0.123456789012, 2.0], [4, 6], compared))
    assert metrics.losses == (0.12345679, 2.0)
    assert metrics.compared["m"].kl_divergences == (0.00000001, 1.00000003)
    assert metrics.compared["m"].top1_match == (True, False)
    assert metrics.correct == (True, False)
    assert metrics.argmax_ids == (4, 6)


@pytest.mark.usefixtures("no_engine")
def test_the_speed_counts_all_tokens(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """302 tokens in 7 seconds are 43.1 tokens per second; a model in PyTorch has no KV cache."""
    measurement = measure(tiny_int4.artifact, encoded(tmp_path), ONE_THREAD)
    assert measurement.machine_dependent.tokens_per_second == 43.1
    assert measurement.machine_dependent.load_seconds == 1.235
    assert measurement.kv_cache_bytes_per_token is None


@pytest.mark.usefixtures("no_engine")
def test_the_kv_cache_has_the_dtype_of_the_engine(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """llama.cpp stores 2 bytes per value, the ONNX graphs 4."""
    inputs = encoded(tmp_path)
    found = [measure(artifact, inputs, ONE_THREAD) for artifact in tiny_exports]
    assert [(one.kv_cache, one.kv_cache_bytes_per_token) for one in found] == [("f16", 2 * 96), (None, 4 * 96)]


@pytest.mark.parametrize(("types", "nbytes"), [("q8_0", 34 + 2 * 34), ("q8_0/q4_0", 34 + 2 * 18), ("f32", 4 * 96)])
def test_the_types_of_the_kv_cache_reach_llama_cpp(
    types: str, nbytes: int, tiny_exports: list[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker process of a GGUF artifact gets them; the measurement records types and bytes of a token."""
    taken: list[Any] = []

    def run(*given: Any, options: EngineOptions, **_: Any) -> RunResult:
        taken.append(options.keywords())
        return run_result(given[2])

    def peak(*given: Any) -> PeakMemory:
        taken.append(given[-1].keywords())
        return PeakMemory(vision_rss_bytes=11, total_rss_bytes=22)

    monkeypatch.setattr(MODULE, "run_engine", run)
    monkeypatch.setattr(MODULE, "measure_sequential_peak", peak)
    settings = Settings(threads=1, kv_cache=KvCache.parse(types))

    measurement = measure(tiny_exports[0], encoded(tmp_path, with_image=True), settings)

    assert taken == [{"kv_cache": types}] * 2
    assert (measurement.kv_cache, measurement.kv_cache_bytes_per_token) == (types, nbytes)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("with_image", "engine_preprocessing", "peaks"),
    [(True, False, (22, 11)), (False, False, (None, None)), (True, True, (None, None))],
)
def test_sequential_memory_is_measured_on_encoded_images(
    tiny_exports: list[Artifact],
    tmp_path: Path,
    with_image: bool,
    engine_preprocessing: bool,
    peaks: tuple[int | None, int | None],
) -> None:
    """Without an image, or with the preprocessing of the engine, sequential loading is not measured."""
    settings = Settings(threads=1, engine_preprocessing=engine_preprocessing)
    machine = measure(tiny_exports[0], encoded(tmp_path, with_image=with_image), settings).machine_dependent
    assert (machine.sequential_peak_rss_bytes, machine.vision_peak_rss_bytes) == peaks


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(("limit", "is_cached"), [(4 * 2688, True), (4 * 2688 - 1, False)])
def test_disk_space_and_cache_limit_count_answer_tokens(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, is_cached: bool
) -> None:
    """Four answer tokens take 4 rows of 256 exact values (8 bytes each) and 320 values of 2 bytes."""
    needed: list[tuple[Path, int]] = []
    monkeypatch.setattr(MODULE, "check_disk_space", lambda *arguments: needed.append(arguments))
    monkeypatch.setattr(cache, "MAX_CACHE_NBYTES", limit)
    inputs, folder = encoded(tmp_path), tmp_path / "cache"
    measure_original(Checkpoint.open(tiny_checkpoint), inputs, Settings(threads=1, cache_folder=folder))
    assert needed == [(folder if is_cached else tmp_path, 4 * 2688)]
    assert folder.exists() == is_cached


@pytest.mark.usefixtures("no_engine")
def test_a_cache_that_cannot_be_written_is_reported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """On a read-only home folder the original is measured without the cache, and the result has the reason."""
    (tmp_path / "file").touch()
    settings = Settings(threads=1, cache_folder=tmp_path / "file" / "cache")
    result = measure_original(Checkpoint.open(tiny_checkpoint), encoded(tmp_path), settings)
    assert "Not a directory" in str(result.measurement.machine_dependent.cache_error)
    assert result.logprobs.parent == tmp_path


# --- with an engine ---------------------------------------------------------------------------------------------------


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


@pytest.mark.usefixtures("started_workers")
def test_a_failed_engine_is_an_error(
    checkpoint: Checkpoint, mixed_set: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process that cannot start raises an EngineError."""
    with encode_samples(checkpoint, mixed_set, ONE_THREAD) as inputs:
        monkeypatch.setenv("PYTHONHOME", "/nowhere")
        with pytest.raises(EngineError, match="after 0 of 9"):
            measure_original(checkpoint, inputs, ONE_THREAD)
