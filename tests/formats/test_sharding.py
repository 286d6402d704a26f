"""Parts of a given size are loaded as the whole, and hold the same bytes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.artifact import Artifact
from mcpmq.errors import ReleaseError
from mcpmq.export import export
from mcpmq.formats.gguf.splitting import split
from mcpmq.formats.sharding import divide
from mcpmq.quantized_model import Quantized
from mcpmq.system.json_file import read_json
from tests.gguf_tools import quantized_by

PART_NBYTES = 1_000_000


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Everything in 8 bits: the language model is larger than a part."""
    return quantized_by(tiny_checkpoint, tmp_path_factory.mktemp("int8"), _all="int8-g32")


@pytest.fixture(scope="module")
def gguf(int8: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """As GGUF."""
    return export(int8, "gguf", tmp_path_factory.mktemp("gguf") / "gguf")


def test_the_count_of_chunks_is_said_where_browsers_look(int8: Quantized, tmp_path: Path) -> None:
    """transformers.js fetches as many chunks as config.json says."""
    whole = export(int8, "onnx", tmp_path / "whole")
    (tmp_path / "parts").mkdir()

    files = divide(whole, tmp_path / "parts", PART_NBYTES)
    counts = read_json(tmp_path / "parts" / "config.json")["transformers.js_config"]["use_external_data_format"]

    assert counts["decoder_model_merged_quantized.onnx"] == 2
    assert sum(counts.values()) == sum(".onnx_data" in name for names in files.values() for name in names)


@settings(max_examples=15, deadline=None)
@given(largest_nbytes=st.integers(160_000, 1_500_000))
def test_parts_of_any_size_hold_the_same_tensors(gguf: Artifact, largest_nbytes: int) -> None:
    """Read back by gguf-py: metadata in the first, every tensor once and in order, numbers that llama.cpp asks for."""
    [file] = gguf.files_of("language")
    whole = GGUFReader(file)
    with TemporaryDirectory() as folder:
        names = split(file, Path(folder), largest_nbytes)
        assert max((Path(folder) / name).stat().st_size for name in names) <= largest_nbytes
        readers = [GGUFReader(Path(folder) / name) for name in names]
        tensors = [tensor for reader in readers for tensor in reader.tensors]

        assert [tensor.name for tensor in tensors] == [tensor.name for tensor in whole.tensors]
        for ours, theirs in zip(tensors, whole.tensors, strict=True):
            assert (ours.tensor_type, ours.shape.tolist()) == (theirs.tensor_type, theirs.shape.tolist())
            assert ours.data.tobytes() == theirs.data.tobytes()
        for number, reader in enumerate(readers):
            told = [reader.fields[f"split.{key}"].contents() for key in ("no", "count", "tensors.count")]
            assert told == [number, len(names), len(whole.tensors)]
        assert {*whole.fields} <= {*readers[0].fields}
        assert all(names[n].endswith(f"-{n + 1:05d}-of-{len(names):05d}.gguf") for n in range(len(names)))


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_what_cannot_be_divided_is_refused(int8: Quantized, tmp_path: Path, kind: str) -> None:
    """A tensor is larger than a part; or a file that llama.cpp reads only whole."""
    assert kind in ("gguf", "onnx")
    whole = export(int8, kind, tmp_path / "whole")  # type: ignore[arg-type]
    (tmp_path / "parts").mkdir()

    with pytest.raises(ReleaseError, match="loads it only whole|more than the 50,000 of a part"):
        divide(whole, tmp_path / "parts", 50_000)


def test_a_tensor_larger_than_a_part_is_named(gguf: Artifact, tmp_path: Path) -> None:
    """With what it takes."""
    with pytest.raises(ReleaseError, match=r"`.*` of `tiny-Q8_0\.gguf` takes a part of"):
        split(gguf.files_of("language")[0], tmp_path, 50_000)
