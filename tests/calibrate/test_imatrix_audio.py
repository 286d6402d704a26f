"""Importance matrices of models with an audio encoder, under the names of the GGUF files that have one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mcpmq.artifact import Artifact
from mcpmq.calibrate.imatrix import LANGUAGE, MMPROJ, read_matrices, write_imatrix
from mcpmq.calibrate.read_importance import read_importance
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.dataset.sample import Audio, Turn
from mcpmq.formats.gguf.imatrix_file import ImportanceMatrix
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from tests.audio_tools import write_wav
from tests.gguf_tools import export_gguf, gguf_reader
from tests.tiny_families import MINICPM_O_2_6, QWEN2_5_OMNI, TinyFamily

STACKED_FRAMES = 2  # of the projector of MiniCPM-o 2.6


@pytest.fixture(scope="module", params=[QWEN2_5_OMNI, MINICPM_O_2_6], ids=lambda tiny: tiny.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint of each family with an audio encoder."""
    tiny: TinyFamily = request.param
    return Checkpoint.open(tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    """Two samples with audio."""
    folder = tmp_path_factory.mktemp("speech")
    files = [write_wav(folder / f"{seed}.wav", 1.3, seed) for seed in range(2)]
    turns = [(Turn("user", (Audio(file), "How many?")), Turn("assistant", ("There are two.",))) for file in files]
    return SampleSet(folder, tuple(Sample(f"a{number}", one) for number, one in enumerate(turns)))


@pytest.fixture(scope="module")
def images(mixed_set: SampleSet) -> SampleSet:
    """Two samples with images."""
    return SampleSet(mixed_set.path, tuple(one for one in mixed_set if one.id in ("i0", "i1")))


@pytest.fixture(scope="module")
def of_audio(checkpoint: Checkpoint, speech: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The importance matrix of the samples with audio."""
    return write_imatrix(checkpoint, speech, tmp_path_factory.mktemp("imatrix") / "speech")


def _mmproj(artifact: Artifact) -> ImportanceMatrix:
    [matrix] = read_matrices([artifact], MMPROJ)
    return matrix


def _export(checkpoint: Checkpoint, folder: Path, gguf_audio: str) -> Artifact:
    recipe = {"name": "full", "gguf_audio": gguf_audio, "weights": {"*": "f32"}}
    plan = make_plan(checkpoint, Recipe.model_validate(recipe))
    return export_gguf(quantize(plan, folder / "quantized"), folder)


def _gguf_audio(checkpoint: Checkpoint) -> str:
    return "glma" if checkpoint.architecture.required_audio.kind == "minicpm-o" else "none"


def test_every_audio_matrix_of_the_gguf_file_has_its_importance(
    checkpoint: Checkpoint, of_audio: Artifact, tmp_path: Path
) -> None:
    """One entry for each two-dimensional weight of encoder and projector, with its columns; none of the vision."""
    reader = gguf_reader(_export(checkpoint, tmp_path, _gguf_audio(checkpoint)), MMPROJ)
    expected = {
        one.name: int(one.shape[0])
        for one in reader.tensors
        if one.name.startswith(("a.blk.", "mm.a.")) and one.name.endswith(".weight") and len(one.shape) == 2
    }

    entries = _mmproj(of_audio).entries

    assert len(expected) > 10
    assert {name: entry.columns for name, entry in entries.items()} == expected
    assert all(entry.count and entry.square_sums.any() for entry in entries.values())


def test_the_manifest_names_matrices_without_inputs(of_audio: Artifact) -> None:
    """Those of the vision encoder, though a file of the audio encoder was written."""
    [note] = of_audio.manifest.notes

    assert note.startswith("the mmproj file has no entries of some matrices because no sample has an image; ")
    assert "vision.layers.0.attention" in note
    assert "audio" not in note
    assert [record.component for record in of_audio.manifest.files] == [LANGUAGE, MMPROJ]


def test_a_text_set_has_no_entries_of_encoders(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path) -> None:
    """The note names images and audio."""
    texts = SampleSet(mixed_set.path, tuple(one for one in mixed_set if not one.has_vision))

    [note] = write_imatrix(checkpoint, texts, tmp_path / "texts").manifest.notes

    assert note.startswith("no mmproj file was written because no sample has an image or audio; ")


def test_matrices_of_images_and_of_audio_add_up(
    checkpoint: Checkpoint, of_audio: Artifact, images: SampleSet, tmp_path: Path
) -> None:
    """The sum has the entries of both encoders: each is that of the only set with its inputs."""
    of_images = write_imatrix(checkpoint, images, tmp_path / "images")

    both = _mmproj(write_imatrix(checkpoint, images, tmp_path / "both", [of_audio.path])).entries

    parts = _mmproj(of_audio).entries, _mmproj(of_images).entries
    assert both.keys() == {*parts[0], *parts[1]}
    for name, entry in (item for part in parts for item in part.items()):
        assert entry.count == both[name].count
        assert np.array_equal(entry.square_sums, both[name].square_sums)


def test_inputs_of_the_projector_are_those_of_the_checkpoint(checkpoint: Checkpoint, of_audio: Artifact) -> None:
    """Mean squares have its columns; MiniCPM-o repeats them for the frames that are side by side in the file."""
    found = read_importance(of_audio.path, checkpoint).mean_squares
    specs = {one.name: one for one in checkpoint.specs if one.component == "audio_projector" and one.role == "matrix"}

    assert {name: [len(part) for part in found[name]] for name in specs} == {
        name: [one.shape[1]] for name, one in specs.items()
    }
    if _gguf_audio(checkpoint) == "glma":
        first, second = np.split(_mmproj(of_audio).entries["mm.a.mlp.1.weight"].square_sums, STACKED_FRAMES)
        assert np.array_equal(first, second)
        count = _mmproj(of_audio).entries["mm.a.mlp.1.weight"].count
        assert torch.equal(found["audio_projector.up"][0], torch.from_numpy(first) / count)


def test_the_share_of_audio_tokens_is_that_of_the_language_model(checkpoint: Checkpoint, of_audio: Artifact) -> None:
    """Audio tokens of all samples over all tokens, without images."""
    [tokens] = [one.calibration_tokens for one in of_audio.manifest.weights if one.name == "language.layers.0.mlp.up"]
    assert tokens

    shares = read_importance(of_audio.path, checkpoint).token_shares

    assert shares == {"vision": 0, "audio": tokens["audio"] / sum(tokens.values())}
    assert 0.2 < shares["audio"] < 1


def test_an_mmproj_file_may_have_no_audio(checkpoint: Checkpoint, images: SampleSet, tmp_path: Path) -> None:
    """The file of MiniCPM-o without `glma` has the columns of the vision encoder."""
    [file] = _export(checkpoint, tmp_path, "none").component_files(MMPROJ)

    made = _mmproj(write_imatrix(checkpoint, images, tmp_path / "images", mmproj_file=file))

    assert made.entries
    assert all(name.startswith(("v.", "mm.", "resampler.")) for name in made.entries)
