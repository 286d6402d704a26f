"""An importance matrix holds the squared inputs of every matrix in plain forward passes, under llama.cpp's names."""

import json
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcpmq.artifact import Artifact
from mcpmq.calibrate import imatrix
from mcpmq.calibrate.forward import encode_samples
from mcpmq.calibrate.imatrix import LANGUAGE, MMPROJ, write_imatrix
from mcpmq.calibrate.modalities import token_modalities
from mcpmq.calibrate.square_sums import SquareSums
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError, DatasetError, FormatError, OutputError
from mcpmq.evaluate import Settings, measure
from mcpmq.execution import chunked_matmul, torch_model
from mcpmq.families.family import TensorSpec
from mcpmq.formats.gguf import names
from mcpmq.formats.gguf.imatrix_file import ImportanceMatrix
from mcpmq.formats.gguf.names import gguf_names
from mcpmq.formats.gguf.resampler import SIGLIP_RESAMPLER
from mcpmq.formats.gguf.vision_tower import VISION_COMPONENTS
from mcpmq.quantized_model import QuantizedModel
from mcpmq.rounding.stats import VISION
from mcpmq.system.progress import Item, silent
from mcpmq.system.torch_threads import torch_threads
from tests.gguf_tools import export_gguf, gguf_reader, metadata_value, quantize_with


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The importance matrix over all samples."""
    return write_imatrix(checkpoint, mixed_set, tmp_path_factory.mktemp("imatrix") / "whole")


def part_of(samples: SampleSet, ids: Sequence[str], name: str) -> SampleSet:
    """The samples of a set with these ids, as a set."""
    return SampleSet(samples.path / name, tuple(sample for sample in samples if sample.id in ids))


def matrix_of(artifact: Artifact, part: str) -> ImportanceMatrix:
    [file] = artifact.component_files(part)
    return ImportanceMatrix.read(file)


def assert_close(one: ImportanceMatrix, other: ImportanceMatrix) -> None:
    assert one.entries.keys() == other.entries.keys()
    for name, entry in one.entries.items():
        assert entry.count == other.entries[name].count, name
        assert np.allclose(entry.square_sums, other.entries[name].square_sums, rtol=1e-5), name


# --- contents ---------------------------------------------------------------------------------------------------------


def test_sums_are_those_of_plain_forward_passes(checkpoint: Checkpoint, mixed_set: SampleSet, whole: Artifact) -> None:
    """Sums and counts equal those of plain forward passes for every nn.Linear; the head has no image tokens."""
    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.load_block(block, lambda spec: torch_model.to_float(checkpoint.load(spec), spec))
    by_hub_name = {spec.hub_name: spec for spec in checkpoint.specs}
    inputs: dict[str, list[Tensor]] = {}
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in by_hub_name:
            module.register_forward_pre_hook(partial(_keep, inputs, by_hub_name[f"{name}.weight"]))
    processor = checkpoint.family.open_processor(checkpoint.path)
    samples = encode_samples(processor, mixed_set.samples, silent)
    with torch.inference_mode():
        for sample in samples:
            tensors = {name: torch.from_numpy(value) for name, value in processor.model_inputs(sample).items()}
            model.module(**tensors, use_cache=False)

    entries = {**matrix_of(whole, LANGUAGE).entries, **matrix_of(whole, MMPROJ).entries}
    has_logits = torch.cat([token_modalities(sample) != VISION for sample in samples])
    assert len(inputs) > 20
    for name, parts in inputs.items():
        rows = torch.cat(parts)
        if name == "output.weight":
            rows = rows[has_logits]
        assert entries[name].count == len(rows), name
        assert np.allclose(entries[name].square_sums, rows.double().square().sum(0).numpy(), rtol=1e-4), name


def _names(spec: TensorSpec) -> tuple[str, ...]:
    in_mmproj = spec.component in VISION_COMPONENTS
    return gguf_names(spec.name, SIGLIP_RESAMPLER.names if in_mmproj else names.LANGUAGE_NAMES)


def _keep(inputs: dict[str, list[Tensor]], spec: TensorSpec, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    [name] = _names(spec)
    inputs.setdefault(name, []).append(args[0].flatten(0, -2))


def test_every_matrix_of_the_gguf_files_has_its_importance(
    whole: Artifact, tiny_full: QuantizedModel, tmp_path: Path
) -> None:
    """gguf-py reads one entry per matrix of the GGUF export, under its name and with its columns."""
    artifact = export_gguf(tiny_full, tmp_path)
    matrices = [name for spec in tiny_full.specs.values() if spec.role == "matrix" for name in _names(spec)]
    found = set()
    for part in (LANGUAGE, MMPROJ):
        columns = {tensor.name: int(tensor.shape[0]) for tensor in gguf_reader(artifact, part).tensors}
        [file] = whole.component_files(part)
        for tensor in GGUFReader(file).tensors:
            name, _, kind = tensor.name.rpartition(".")
            found.add(name)
            assert tensor.shape.tolist() == ([columns[name], 1] if kind == "in_sum2" else [1, 1]), name
    assert found == set(matrices)


def test_files_record_their_calibration_set(whole: Artifact, mixed_set: SampleSet) -> None:
    """The file has the name of the set and one chunk per sample, the manifest the tokens of each modality."""
    [file] = whole.component_files(LANGUAGE)
    reader = GGUFReader(file)

    assert metadata_value(reader, "imatrix.datasets") == [mixed_set.path.name]
    assert metadata_value(reader, "imatrix.chunk_count") == 9
    tokens = {record.name: record.calibration_tokens for record in whole.manifest.weights}
    gate = tokens["language.layers.1.mlp.gate"]
    assert gate is not None
    assert sum(gate.values()) == matrix_of(whole, LANGUAGE).entries["blk.1.ffn_gate.weight"].count
    assert tokens["head"] == {**gate, "vision": 0}
    nbytes = {record.name: record.nbytes for record in whole.manifest.weights}
    assert nbytes["language.layers.1.mlp.down"] == 4 * 512
    assert nbytes["vision.layers.0.mlp.down"] == 4 * 144
    whole.verify()


def test_bytes_are_equal_on_any_number_of_threads(
    checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One and four threads write the same files."""
    monkeypatch.setattr(chunked_matmul, "CHUNK_OUTPUTS", 100)
    made = []
    for threads in (1, 4):
        with torch_threads(threads):
            made.append(write_imatrix(checkpoint, mixed_set, tmp_path / str(threads)))

    assert made[0].manifest == made[1].manifest  # it has the hashes of the files


def test_tensors_that_share_their_inputs_have_the_same_sums() -> None:
    """One matrix that becomes two GGUF tensors has its sums in both; three parts with sums of their own keep them."""
    one, two, three = (SquareSums(torch.full((2,), value), {}) for value in (1.0, 2.0, 3.0))

    assert list(imatrix._split(("gate", "up"), (one,))) == [("gate", one), ("up", one)]
    assert list(imatrix._split(("q", "k", "v"), (one, two, three))) == [("q", one), ("k", two), ("v", three)]


# --- addition ---------------------------------------------------------------------------------------------------------


def test_matrices_of_parts_add_up_to_that_of_the_whole(
    checkpoint: Checkpoint, mixed_set: SampleSet, whole: Artifact, tmp_path: Path
) -> None:
    """Three parts of the samples, one without images, added in two steps, equal one run over all samples."""
    parts = [part_of(mixed_set, ids, f"part{ids[0]}") for ids in (["i0", "i1", "t0"], ["i2", "i3", "i4", "i5"])]
    texts = part_of(mixed_set, ["t1", "t2"], "texts")

    first = write_imatrix(checkpoint, parts[0], tmp_path / "first")
    second = write_imatrix(checkpoint, parts[1], tmp_path / "second", [first.path])
    third = write_imatrix(checkpoint, texts, tmp_path / "third", [second.path])

    for part in (LANGUAGE, MMPROJ):
        assert_close(matrix_of(third, part), matrix_of(whole, part))
    assert matrix_of(third, LANGUAGE).samples == 9
    assert matrix_of(third, LANGUAGE).datasets == ("texts", "parti2", "parti0")
    assert matrix_of(third, MMPROJ).datasets == ("parti2", "parti0")
    assert third.manifest.weights == whole.manifest.weights
    [note] = third.manifest.notes
    assert note.startswith("also summed over: parti2 (4 samples, 4 with an image, sha256 ")
    assert ", parti0 (3 samples, 2 with an image, sha256 " in note


def test_artifacts_of_another_checkpoint_are_not_added(
    checkpoint: Checkpoint, mixed_set: SampleSet, whole: Artifact, tiny_full: QuantizedModel, tmp_path: Path
) -> None:
    """Another checkpoint's importance matrix and another kind of artifact are errors before a sample is read."""
    copy = Path(shutil.copytree(checkpoint.path, tmp_path / "copy"))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    for other, folder in ((Checkpoint.open(copy), whole.path), (checkpoint, tiny_full.path)):
        with pytest.raises(ArtifactError, match="is not an importance matrix of"):
            write_imatrix(other, mixed_set, tmp_path / "out", [folder], progress=_untouched)


def _untouched(items: Sequence[Item], label: str) -> Iterable[Item]:
    pytest.fail("samples were read")


# --- padding ----------------------------------------------------------------------------------------------------------


def test_columns_are_padded_to_those_of_an_mmproj_file(
    checkpoint: Checkpoint, mixed_set: SampleSet, whole: Artifact, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """144 columns become 160 with zero sums; a narrower matrix can be added to a padded one, not the reverse."""
    wide = export_gguf(quantize_with(tiny_checkpoint, tmp_path, _all="int8-g32"), tmp_path)
    [mmproj] = wide.component_files(MMPROJ)

    made = write_imatrix(checkpoint, mixed_set, tmp_path / "wide", [whole.path], mmproj)

    before, after = matrix_of(whole, MMPROJ).entries, matrix_of(made, MMPROJ).entries
    down = after["v.blk.1.ffn_down.weight"].square_sums
    assert down.shape == (160,)
    assert not down[144:].any()
    for name, entry in before.items():
        assert np.allclose(after[name].square_sums[: entry.square_sums.size], 2 * entry.square_sums)
    with pytest.raises(FormatError, match=r"160 columns of `v\.blk\.0\.ffn_down\.weight`, the mmproj file 144"):
        write_imatrix(checkpoint, mixed_set, tmp_path / "narrow", [made.path], progress=_untouched)


def test_an_mmproj_file_with_other_matrices_is_an_error(
    checkpoint: Checkpoint, mixed_set: SampleSet, whole: Artifact, tmp_path: Path
) -> None:
    """The error comes before a sample is read."""
    [file] = whole.component_files(LANGUAGE)

    with pytest.raises(FormatError, match="has 0 columns in `v.blk.0"):
        write_imatrix(checkpoint, mixed_set, tmp_path / "out", mmproj_file=file, progress=_untouched)


# --- errors and notes -------------------------------------------------------------------------------------------------


def test_without_an_image_there_is_no_mmproj_file(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path) -> None:
    """The manifest notes the vision matrices that have no sums."""
    made = write_imatrix(checkpoint, part_of(mixed_set, ["t0", "t1"], "texts"), tmp_path / "out")

    assert [record.component for record in made.manifest.files] == [LANGUAGE]
    [note] = made.manifest.notes
    assert "no mmproj file was written because no sample has an image" in note
    assert "vision.layers.0.attention.q" in note
    assert "projector.out" in note
    assert "language" not in note


def test_inputs_that_are_not_finite_are_an_error(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path) -> None:
    """The error names the first matrix that receives them; nothing is written."""
    copy = Path(shutil.copytree(checkpoint.path, tmp_path / "copy"))
    norm = "llm.model.layers.1.input_layernorm.weight"
    shard = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"][norm]
    tensors = load_file(shard)
    tensors[norm].view(-1)[5] = 1e38
    save_file(tensors, shard)

    with pytest.raises(DatasetError, match=r"the inputs of `language\.layers\.1\.attention\.q` are not finite"):
        write_imatrix(Checkpoint.open(copy), mixed_set, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_an_error(checkpoint: Checkpoint, mixed_set: SampleSet, whole: Artifact) -> None:
    """The error comes before a sample is read."""
    with pytest.raises(OutputError, match="exists and is not empty"):
        write_imatrix(checkpoint, mixed_set, whole.path, progress=_untouched)


def test_an_importance_matrix_cannot_be_evaluated(whole: Artifact) -> None:
    """The error comes before an engine starts."""
    with pytest.raises(ArtifactError, match="is an importance matrix, not a model"):
        measure(whole, None, Settings(threads=1))  # type: ignore[arg-type]
