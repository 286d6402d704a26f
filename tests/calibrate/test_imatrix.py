"""An importance matrix is the squares of what a plain forward pass feeds every matrix, and llama.cpp can find them."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcpmq.artifact import Artifact
from mcpmq.calibrate.forward import kinds_of, read_samples
from mcpmq.calibrate.imatrix import LANGUAGE, MMPROJ, imatrix
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError, CalibrationError, FormatError, OutputError
from mcpmq.evaluate import Settings, measure
from mcpmq.execution import chunked_matmul, torch_model
from mcpmq.execution.chunked_matmul import torch_threads
from mcpmq.families.family import TensorSpec
from mcpmq.formats.gguf import mmproj, names
from mcpmq.formats.gguf.importance import ImportanceMatrix
from mcpmq.formats.gguf.names import names_of
from mcpmq.formats.gguf.resampler import SIGLIP_RESAMPLER
from mcpmq.quantized_model import Quantized
from mcpmq.rounding.stats import VISION
from mcpmq.system.progress import silent
from tests.gguf_tools import exported, field, quantized_by, reader_of


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What all samples give."""
    return imatrix(checkpoint, mixed_set, tmp_path_factory.mktemp("imatrix") / "whole")


def part_of(samples: CalibrationSet, ids: Sequence[str], name: str) -> CalibrationSet:
    """Some samples of a set, as a set of its own."""
    return CalibrationSet(samples.path / name, tuple(sample for sample in samples if sample.id in ids))


def matrix_of(artifact: Artifact, part: str) -> ImportanceMatrix:
    [file] = artifact.files_of(part)
    return ImportanceMatrix.read(file)


def assert_close(one: ImportanceMatrix, other: ImportanceMatrix) -> None:
    assert one.entries.keys() == other.entries.keys()
    for name, entry in one.entries.items():
        assert entry.count == other.entries[name].count, name
        assert np.allclose(entry.squares, other.entries[name].squares, rtol=1e-5), name


# --- what is in the files ---------------------------------------------------------------------------------------------


def test_sums_are_those_of_plain_forward_passes(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, whole: Artifact
) -> None:
    """Of the original, sample by sample, for every linear of both towers and the resampler; the head is not asked at
    images."""
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.fill(block, lambda spec: torch_model.floats_of(checkpoint.load(spec), spec))
    by_hub_name = {spec.hub_name: spec for spec in checkpoint.specs}
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in by_hub_name:
            module.register_forward_pre_hook(partial(_keep, seen, by_hub_name[f"{name}.weight"]))
    processor = checkpoint.family.processor(checkpoint.path)
    samples = read_samples(processor, mixed_set.samples, silent)
    with torch.inference_mode():
        for sample in samples:
            tensors = {name: torch.from_numpy(value) for name, value in processor.arguments(sample).items()}
            model.module(**tensors, use_cache=False)

    entries = {**matrix_of(whole, LANGUAGE).entries, **matrix_of(whole, MMPROJ).entries}
    spoken = torch.cat([kinds_of(sample) != VISION for sample in samples])
    assert len(seen) > 20
    for name, parts in seen.items():
        rows = torch.cat(parts)
        if name == "output.weight":
            rows = rows[spoken]
        assert entries[name].count == len(rows), name
        assert np.allclose(entries[name].squares, rows.double().square().sum(0).numpy(), rtol=1e-4), name


def _names(spec: TensorSpec) -> tuple[str, ...]:
    seeing = spec.component in mmproj.COMPONENTS
    return names_of(spec.name, SIGLIP_RESAMPLER.names if seeing else names.LANGUAGE)


def _keep(seen: dict[str, list[Tensor]], spec: TensorSpec, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    [name] = _names(spec)
    seen.setdefault(name, []).append(args[0].flatten(0, -2))


def test_every_matrix_of_the_gguf_files_has_its_importance(
    whole: Artifact, tiny_full: Quantized, tmp_path: Path
) -> None:
    """By its name there, of its columns; read by gguf-py."""
    artifact = exported(tiny_full, tmp_path)
    matrices = [name for spec in tiny_full.specs.values() if spec.role == "matrix" for name in _names(spec)]
    found = set()
    for part in (LANGUAGE, MMPROJ):
        columns = {tensor.name: int(tensor.shape[0]) for tensor in reader_of(artifact, part).tensors}
        [file] = whole.files_of(part)
        for tensor in GGUFReader(file).tensors:
            name, _, what = tensor.name.rpartition(".")
            found.add(name)
            assert tensor.shape.tolist() == ([columns[name], 1] if what == "in_sum2" else [1, 1]), name
    assert found == set(matrices)


def test_files_say_what_they_were_summed_over(whole: Artifact, mixed_set: CalibrationSet) -> None:
    """The set, a chunk for every sample; the manifest the tokens of each modality."""
    [file] = whole.files_of(LANGUAGE)
    reader = GGUFReader(file)

    assert field(reader, "imatrix.datasets") == [mixed_set.path.name]
    assert field(reader, "imatrix.chunk_count") == 9
    tokens = {record.name: record.tokens for record in whole.manifest.weights}
    gate = tokens["language.layers.1.mlp.gate"]
    assert gate is not None
    assert sum(gate.values()) == matrix_of(whole, LANGUAGE).entries["blk.1.ffn_gate.weight"].count
    assert tokens["head"] == {**gate, "vision": 0}
    whole.verify()


def test_threads_change_no_byte(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are."""
    monkeypatch.setattr(chunked_matmul, "PIECE_OUTPUTS", 100)
    made = []
    for threads in (1, 4):
        with torch_threads(threads):
            made.append(imatrix(checkpoint, mixed_set, tmp_path / str(threads)))

    assert made[0].manifest == made[1].manifest  # it has the hashes of the files


# --- runs add up ------------------------------------------------------------------------------------------------------


def test_runs_over_parts_add_up_to_the_run_over_the_whole(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, whole: Artifact, tmp_path: Path
) -> None:
    """Three parts, one of them without an image, added in two steps."""
    parts = [part_of(mixed_set, ids, f"part{ids[0]}") for ids in (["i0", "i1", "t0"], ["i2", "i3", "i4", "i5"])]
    texts = part_of(mixed_set, ["t1", "t2"], "texts")

    first = imatrix(checkpoint, parts[0], tmp_path / "first")
    second = imatrix(checkpoint, parts[1], tmp_path / "second", [first.path])
    third = imatrix(checkpoint, texts, tmp_path / "third", [second.path])

    for part in (LANGUAGE, MMPROJ):
        assert_close(matrix_of(third, part), matrix_of(whole, part))
    assert matrix_of(third, LANGUAGE).samples == 9
    assert matrix_of(third, LANGUAGE).datasets == ("texts", "parti2", "parti0")
    assert matrix_of(third, MMPROJ).datasets == ("parti2", "parti0")
    assert third.manifest.weights == whole.manifest.weights
    [note] = third.manifest.notes
    assert note.startswith("also summed over: parti2 (4 samples, 4 with an image, sha256 ")
    assert ", parti0 (3 samples, 2 with an image, sha256 " in note


def test_what_is_of_another_checkpoint_is_not_added(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, whole: Artifact, tiny_full: Quantized, tmp_path: Path
) -> None:
    """Nor is what is no importance matrix; both are refused before a sample is read."""
    copy = Path(shutil.copytree(checkpoint.path, tmp_path / "copy"))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    for other, folder in ((Checkpoint.open(copy), whole.path), (checkpoint, tiny_full.path)):
        with pytest.raises(ArtifactError, match="is no importance matrix of"):
            imatrix(other, mixed_set, tmp_path / "out", [folder], progress=_untouched)


def _untouched(*_: object) -> None:
    pytest.fail("work was begun")


# --- widths -----------------------------------------------------------------------------------------------------------


def test_a_width_that_zeros_widened_is_matched(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, whole: Artifact, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """144 columns are 160 in an mmproj of whole blocks; the added ones saw nothing, all others are the same. What was
    made for one width can be added for this one too, but not the other way round."""
    wide = exported(quantized_by(tiny_checkpoint, tmp_path, _all="int8-g32"), tmp_path)
    [mmproj] = wide.files_of(MMPROJ)

    made = imatrix(checkpoint, mixed_set, tmp_path / "wide", [whole.path], mmproj)

    before, after = matrix_of(whole, MMPROJ).entries, matrix_of(made, MMPROJ).entries
    down = after["v.blk.1.ffn_down.weight"].squares
    assert down.shape == (160,)
    assert not down[144:].any()
    for name, entry in before.items():
        assert np.allclose(after[name].squares[: entry.squares.size], 2 * entry.squares)
    with pytest.raises(FormatError, match=r"160 columns of `v\.blk\.0\.ffn_down\.weight`, 16 too many"):
        imatrix(checkpoint, mixed_set, tmp_path / "narrow", [made.path], progress=_untouched)


def test_a_file_of_other_matrices_is_refused(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, whole: Artifact, tmp_path: Path
) -> None:
    """Before a sample is read."""
    [file] = whole.files_of(LANGUAGE)

    with pytest.raises(FormatError, match="has 0 columns in `v.blk.0"):
        imatrix(checkpoint, mixed_set, tmp_path / "out", mmproj_file=file, progress=_untouched)


# --- what is refused, and what is told --------------------------------------------------------------------------------


def test_without_an_image_there_is_no_mmproj_file(
    checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """And the manifest names what saw nothing."""
    made = imatrix(checkpoint, part_of(mixed_set, ["t0", "t1"], "texts"), tmp_path / "out")

    assert [record.component for record in made.manifest.files] == [LANGUAGE]
    [note] = made.manifest.notes
    assert "no sample has an image: no mmproj file" in note
    assert "vision.layers.0.attention.q" in note
    assert "projector.out" in note
    assert "language" not in note


def test_what_is_not_finite_is_named(checkpoint: Checkpoint, mixed_set: CalibrationSet, tmp_path: Path) -> None:
    """By the first matrix that sees it; nothing is written."""
    copy = Path(shutil.copytree(checkpoint.path, tmp_path / "copy"))
    norm = "llm.model.layers.1.input_layernorm.weight"
    shard = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"][norm]
    tensors = load_file(shard)
    tensors[norm].view(-1)[5] = 1e38
    save_file(tensors, shard)

    with pytest.raises(CalibrationError, match=r"`language\.layers\.1\.attention\.q` saw values that are not finite"):
        imatrix(Checkpoint.open(copy), mixed_set, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_is_refused(checkpoint: Checkpoint, mixed_set: CalibrationSet, whole: Artifact) -> None:
    """Before a sample is read."""
    with pytest.raises(OutputError, match="exists and is not empty"):
        imatrix(checkpoint, mixed_set, whole.path, progress=_untouched)


def test_it_is_no_model_to_measure(whole: Artifact) -> None:
    """Which is said before anything runs."""
    with pytest.raises(ArtifactError, match="holds an importance matrix, no model"):
        measure(whole, None, Settings(threads=1))  # type: ignore[arg-type]
