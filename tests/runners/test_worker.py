"""The worker process: its result file, its output lines and its exit code."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mcpmq.artifact import Artifact
from mcpmq.export import export
from mcpmq.families.inputs import Inputs
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners import gguf, onnx
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.runner import Logits, SliceEmbeddings
from mcpmq.runners.worker import (
    RESULT_FILE,
    SAMPLE_DONE,
    Mode,
    Task,
    main,
    repeated_embeddings,
    rss_bytes,
    typical_sample,
    worst_case_encoding,
)

ENGINES: dict[str, ModuleType] = {"gguf": gguf, "onnx": onnx}


@pytest.fixture
def folder(tmp_path: Path, tiny_samples: list[Inputs]) -> Path:
    """A folder with two encoded samples."""
    (tmp_path / "samples").mkdir()
    store = InputsStore(tmp_path / "samples")
    for sample in tiny_samples[:2]:
        store.append(sample)
    return tmp_path


@pytest.fixture(scope="module", params=list(ENGINES))
def artifact(
    request: pytest.FixtureRequest, tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The tiny model quantized with phone-int4, in the format of each engine."""
    return export(tiny_int4, request.param, tmp_path_factory.mktemp("artifact") / request.param)


def task_file(folder: Path, model: Path, engine: str = "torch", mode: Mode = "measure") -> str:
    """Write the task of a worker and return its path."""
    task = Task(mode, engine, str(model), str(folder / "samples"), threads=1)
    (folder / "task.json").write_text(json.dumps(asdict(task)))
    return str(folder / "task.json")


def test_measure_writes_metrics_and_reports_each_sample(
    folder: Path, tiny_checkpoint: Path, tiny_samples: list[Inputs], capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker prints one line per sample, writes losses and argmax ids as JSON, and returns 0."""
    code = main(task_file(folder, tiny_checkpoint))
    result = json.loads((folder / RESULT_FILE).read_text())
    lengths = [len(s.tokens) - s.answer_start for s in tiny_samples[:2]]
    assert code == 0
    assert capsys.readouterr().out.splitlines() == [SAMPLE_DONE, SAMPLE_DONE]
    assert [len(answer["losses"]) for answer in result["answers"]] == lengths
    assert [len(answer["argmax_ids"]) for answer in result["answers"]] == lengths
    assert result["tokens"] == sum(len(s.tokens) for s in tiny_samples[:2])


def test_sequential_memory_writes_both_peaks(artifact: Artifact, folder: Path) -> None:
    """The result has the peak of the vision encoder and the total peak, which is at least as large."""
    code = main(task_file(folder, artifact.path, artifact.manifest.kind, "sequential-memory"))
    result = json.loads((folder / RESULT_FILE).read_text())
    assert code == 0
    assert 10e6 < result["vision_rss_bytes"] <= result["total_rss_bytes"]


@pytest.mark.parametrize("mode", ["measure", "sequential-memory"])
def test_user_error_is_written_with_its_hint(mode: Mode, folder: Path) -> None:
    """An McpmqError becomes a JSON object and exit code 1; other exceptions keep their traceback."""
    code = main(task_file(folder, folder, "gguf", mode))
    result = json.loads((folder / RESULT_FILE).read_text())
    assert code == 1
    assert "mcpmq.json" in result["error"]
    assert result["hint"]


def stack_logits(_: Inputs, logits: Iterable[Logits]) -> np.ndarray:
    """Copy all rows of logits, [answer tokens, vocab_size]."""
    return np.stack([row.copy() for row in logits])


def test_language_model_with_precomputed_images_gives_equal_logits(
    artifact: Artifact, tiny_samples: list[Inputs]
) -> None:
    """Logits are bit-identical when the slices were encoded before the language model was loaded."""
    engine = ENGINES[artifact.manifest.kind]
    embeddings = engine.encode_images(artifact.path, 1, tiny_samples)
    language_model = engine.open_language_model(artifact.path, 1, embeddings)
    whole_model = engine.open_runner(artifact.path, 1)

    assert len(embeddings) == sum(len(sample.slices) for sample in tiny_samples) > 1
    expected = whole_model.run(tiny_samples, stack_logits)
    for found, logits in zip(language_model.run(tiny_samples, stack_logits), expected, strict=True):
        assert np.array_equal(found, logits)


def make_inputs(name: str, num_tokens: int, num_slices: int) -> Inputs:
    """Return a sample of a given length with black slices."""
    slices, bounds = (np.zeros((14, 14, 3), np.uint8),) * num_slices, np.zeros((num_slices, 2), np.int64)
    return Inputs(name, np.arange(num_tokens), 1, slices, bounds)


def test_phases_are_timed_on_the_image_sample_of_median_length() -> None:
    """Text samples count only if no sample has an image."""
    text = [make_inputs(f"text-{length}", length, 0) for length in (30, 50, 40)]
    images = [make_inputs(f"image-{length}", length, 1) for length in (9, 7, 5, 3)]
    assert typical_sample(text + images).id == "image-7"
    assert typical_sample(text).id == "text-40"


def test_worst_case_encoding_has_every_shape_of_the_sample_and_the_largest_of_all() -> None:
    """Three slices have two shapes; slices and audio of other samples are added if they are larger."""
    small, other, large = (np.zeros(shape, np.uint8) for shape in ((14, 28, 3), (28, 14, 3), (2, 28, 28, 3)))
    short, long = np.zeros(100, np.float32), np.zeros(300, np.float32)
    longest = replace(make_inputs("longest", 9, 0), slices=(small, other, small), audio=(short,))
    others = [replace(make_inputs("other", 5, 0), slices=(small, large), audio=(short, long))]

    found = worst_case_encoding(longest, [*others, longest])

    assert [pixels.shape for pixels in found.slices] == [(14, 28, 3), (28, 14, 3), (2, 28, 28, 3)]
    assert [len(one) for one in found.audio] == [100, 300]
    assert worst_case_encoding(make_inputs("text", 9, 0), [make_inputs("text", 9, 0)]).slices == ()


def test_slices_of_equal_shape_have_equal_embeddings_in_their_own_memory() -> None:
    """The embeddings of the largest slice and audio of other samples are not those of the sample."""
    small, other, large = (np.zeros(shape, np.uint8) for shape in ((14, 28, 3), (28, 14, 3), (28, 28, 3)))
    audio = (np.zeros(100, np.float32), np.zeros(300, np.float32))
    sample = replace(make_inputs("longest", 9, 0), slices=(small, other, small), audio=audio[:1])
    encoded = replace(sample, slices=(small, other, large), audio=audio)
    embeddings = [np.full((2, 4), value, np.float32) for value in (0, 1, 2, 3, 4)]

    found = repeated_embeddings(sample, encoded, embeddings)

    assert [int(one[0, 0]) for one in found] == [0, 1, 0, 3]
    assert not np.shares_memory(found[0], found[2])
    assert repeated_embeddings(sample, encoded, []) == []


def test_the_sequential_measurement_encodes_every_shape_once(
    artifact: Artifact, folder: Path, tiny_samples: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The language model runs the sample with the most tokens, with embeddings for all of its slices."""
    engine, seen = ENGINES[artifact.manifest.kind], list[Inputs]()
    encode = engine.encode_images

    def counting(path: Path, threads: int, samples: list[Inputs]) -> SliceEmbeddings:
        seen.extend(samples)
        found: SliceEmbeddings = encode(path, threads, samples)
        return found

    monkeypatch.setattr(engine, "encode_images", counting)
    assert main(task_file(folder, artifact.path, artifact.manifest.kind, "sequential-memory")) == 0
    assert len(seen) == 1
    assert len(seen[0].tokens) == max(len(sample.tokens) for sample in tiny_samples[:2])
    assert len({pixels.shape for pixels in seen[0].slices}) == len(seen[0].slices) > 0


def test_rss_is_measured_currently_and_at_its_peak() -> None:
    """An array of 80 MB raises both values; freeing it lowers only the current value."""
    before = rss_bytes("VmRSS")
    array = np.ones(10_000_000)
    during = rss_bytes("VmRSS")
    del array
    assert during - before == pytest.approx(80e6, rel=0.1)
    assert rss_bytes("VmRSS") < during - 40e6
    assert rss_bytes("VmHWM") >= during - 1e6
