"""Split files have the same tensors as the original file, and parts of at most the given size."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.artifact import Artifact, write_manifest
from mcpmq.errors import ReleaseError
from mcpmq.export import export
from mcpmq.formats.gguf.splitting import split_gguf
from mcpmq.formats.provenance import check_provenance
from mcpmq.formats.sharding import split_artifact
from mcpmq.quantized_model import QuantizedModel
from mcpmq.system.json_file import read_json
from tests.gguf_tools import quantize_with
from tests.hf_tools import export_hf_artifact

PART_NBYTES = 1_000_000


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """All weights in 8 bits: the language model is larger than a part."""
    return quantize_with(tiny_checkpoint, tmp_path_factory.mktemp("int8"), _all="int8-g32")


@pytest.fixture(scope="module")
def gguf(int8: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same model, exported to GGUF."""
    return export(int8, "gguf", tmp_path_factory.mktemp("gguf") / "gguf")


def test_config_json_has_the_number_of_chunks(int8: QuantizedModel, tmp_path: Path) -> None:
    """transformers.js reads the number of chunks of every graph from config.json."""
    original = export(int8, "onnx", tmp_path / "original")
    (tmp_path / "parts").mkdir()

    files = split_artifact(original, tmp_path / "parts", PART_NBYTES)
    counts = read_json(tmp_path / "parts" / "config.json")["transformers.js_config"]["use_external_data_format"]

    assert counts["decoder_model_merged_quantized.onnx"] == 2
    assert sum(counts.values()) == sum(".onnx_data" in name for names in files.values() for name in names)


@settings(max_examples=15, deadline=None)
@given(max_nbytes=st.integers(160_000, 1_500_000))
def test_parts_of_any_size_have_the_same_tensors(gguf: Artifact, max_nbytes: int) -> None:
    """The first part has the metadata, every tensor is in one part in order, and every part has the split keys."""
    [file] = gguf.component_files("language")
    original = GGUFReader(file)
    with TemporaryDirectory() as folder:
        names = split_gguf(file, Path(folder), max_nbytes)
        assert max((Path(folder) / name).stat().st_size for name in names) <= max_nbytes
        readers = [GGUFReader(Path(folder) / name) for name in names]
        tensors = [tensor for reader in readers for tensor in reader.tensors]

        assert [tensor.name for tensor in tensors] == [tensor.name for tensor in original.tensors]
        for tensor, expected in zip(tensors, original.tensors, strict=True):
            assert (tensor.tensor_type, tensor.shape.tolist()) == (expected.tensor_type, expected.shape.tolist())
            assert tensor.data.tobytes() == expected.data.tobytes()
        for index, reader in enumerate(readers):
            split_keys = [reader.fields[f"split.{key}"].contents() for key in ("no", "count", "tensors.count")]
            assert split_keys == [index, len(names), len(original.tensors)]
        assert {*original.fields} <= {*readers[0].fields}
        assert all(names[n].endswith(f"-{n + 1:05d}-of-{len(names):05d}.gguf") for n in range(len(names)))


def test_split_files_have_the_provenance_of_the_artifact(gguf: Artifact, tmp_path: Path) -> None:
    """The first part has the metadata; a file of exactly the maximum size is not split."""
    [mmproj] = gguf.component_files("vision+projector")

    files = split_artifact(gguf, tmp_path, mmproj.stat().st_size)
    write_manifest(tmp_path, gguf.manifest.model_copy(update={"files": ()}), files)

    assert files["vision+projector"] == [mmproj.name]
    assert len(files["language"]) > 1
    assert check_provenance(Artifact.open(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_a_file_that_cannot_be_split_is_rejected(int8: QuantizedModel, tmp_path: Path, kind: str) -> None:
    """A weight may be larger than a part, and llama.cpp does not load an mmproj file in parts."""
    assert kind in ("gguf", "onnx")
    original = export(int8, kind, tmp_path / "original")  # type: ignore[arg-type]
    (tmp_path / "parts").mkdir()

    with pytest.raises(ReleaseError, match="cannot load an mmproj file in parts|more than the maximum of 50,000"):
        split_artifact(original, tmp_path / "parts", 50_000)


def test_a_format_without_splitting_is_rejected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Files of at most the maximum size are copied; the hint for a larger file names the formats that can be split."""
    _, artifact = export_hf_artifact(tiny_checkpoint, tmp_path, "gptq", **{"language__layers__*": "int4-g32"})
    (tmp_path / "copy").mkdir()
    (tmp_path / "parts").mkdir()

    files = split_artifact(artifact, tmp_path / "copy", None)
    with pytest.raises(ReleaseError, match="more than the maximum of 50,000") as caught:
        split_artifact(artifact, tmp_path / "parts", 50_000)

    assert {path for paths in files.values() for path in paths} == {file.path for file in artifact.manifest.files}
    assert "gguf, onnx" in caught.value.hint


def test_a_tensor_larger_than_a_part_is_named(gguf: Artifact, tmp_path: Path) -> None:
    """The error has the size that a part needs."""
    with pytest.raises(ReleaseError, match=r"`.*` of `tiny-Q8_0\.gguf` needs a part of [\d,]+ bytes"):
        split_gguf(gguf.component_files("language")[0], tmp_path, 50_000)
