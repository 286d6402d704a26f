"""Safetensors headers are checked against the file, and written files are valid for the reference implementation."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mcpmq.errors import CheckpointError
from mcpmq.system.safetensors_file import PACKED_DTYPES, SafetensorsWriter, read_bytes, read_header, read_metadata


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file with three tensors, written by the reference implementation."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5).bfloat16(), "c": torch.zeros(0)}, path)
    return path


def test_header_and_bytes_match_the_reference_implementation(file: Path) -> None:
    """Shapes, dtypes and bytes equal those of the saved tensors."""
    entries = read_header(file)

    assert entries["a"].shape == (2, 3)
    assert entries["b"].torch_dtype == "bfloat16"
    assert torch.equal(torch.frombuffer(read_bytes(entries["a"]), dtype=torch.float32), torch.arange(6.0))


def test_metadata_is_read(file: Path, tmp_path: Path) -> None:
    """Metadata that the reference implementation wrote is returned; a file without metadata returns none."""
    save_file({"a": torch.ones(3)}, tmp_path / "metadata.safetensors", {"tokens": "{}"})

    assert read_metadata(tmp_path / "metadata.safetensors") == {"tokens": "{}"}
    assert read_header(tmp_path / "metadata.safetensors").keys() == {"a"}
    assert read_metadata(file) == {}


@pytest.mark.parametrize("metadata", [3, {"a": 1}, ["x"]])
def test_broken_metadata_is_rejected(tmp_path: Path, metadata: object) -> None:
    """Metadata that does not map strings to strings is an error."""
    header = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "broken.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    with pytest.raises(CheckpointError, match="broken safetensors header"):
        read_metadata(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("nbytes", [0, 3, 8, 40, 200])
def test_a_truncated_file_is_rejected(file: Path, nbytes: int) -> None:
    """Truncation at any byte is an error when the header is read."""
    file.write_bytes(file.read_bytes()[:nbytes])

    with pytest.raises(CheckpointError):
        read_header(file)


def test_the_error_of_a_truncated_file_contains_both_sizes(file: Path) -> None:
    """A file with one missing byte is an error with its size and the required size."""
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])

    with pytest.raises(CheckpointError, match=f"{len(whole) - 1:,} bytes, its header requires {len(whole):,}"):
        read_header(file)


def test_truncation_after_the_header_was_read_is_rejected(file: Path) -> None:
    """Reading a tensor past the end of the file is an error."""
    entry = read_header(file)["a"]
    file.write_bytes(file.read_bytes()[: entry.offset + 3])

    with pytest.raises(CheckpointError, match="bytes early"):
        read_bytes(entry)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "I4", "shape": [8], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        [1, 2],
    ],
)
def test_an_inconsistent_entry_is_rejected(tmp_path: Path, entry: object) -> None:
    """An entry with inconsistent or missing sizes, offsets or dtype is an error."""
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))

    with pytest.raises(CheckpointError):
        read_header(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 150), value=st.integers(0, 255))
def test_a_changed_byte_is_readable_or_a_checkpoint_error(file: Path, position: int, value: int) -> None:
    """A file with one changed byte is either readable or raises CheckpointError."""
    damaged = bytearray(file.read_bytes())
    damaged[min(position, len(damaged) - 1)] = value
    other = file.with_name("damaged.safetensors")
    other.write_bytes(damaged)

    try:
        for entry in read_header(other).values():
            assert len(read_bytes(entry)) == entry.nbytes
    except CheckpointError:
        pass


def test_a_file_written_one_tensor_at_a_time_is_read_by_the_reference(tmp_path: Path) -> None:
    """Tensors of every dtype, of odd sizes, scalars and empty tensors are read back, and all are aligned."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int8, torch.int32, torch.int64)
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    tensors = {"odd": torch.arange(5, dtype=torch.uint8)} | tensors
    tensors |= {"scalar": torch.tensor(7, dtype=torch.uint8), "empty": torch.empty(0, 3)}
    writer = SafetensorsWriter(tmp_path / "written.safetensors", 4001, {"format": "pt"})
    for name, tensor in tensors.items():
        writer.add(name, tensor.T if tensor.ndim == 2 else tensor)
    writer.finish()
    loaded = load_file(tmp_path / "written.safetensors")

    content = (tmp_path / "written.safetensors").read_bytes()
    assert struct.unpack("<Q", content[:8])[0] == 4008  # 4001 reserved bytes, aligned to 8
    assert writer.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    for entry in read_header(tmp_path / "written.safetensors", PACKED_DTYPES).values():
        assert entry.offset % PACKED_DTYPES[entry.dtype][1] == 0
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.T if tensor.ndim == 2 else tensor)
    with pytest.raises(CheckpointError, match="has dtype I32, which is not supported"):
        read_header(tmp_path / "written.safetensors")


def test_a_header_longer_than_its_reserved_bytes_is_an_error(tmp_path: Path) -> None:
    """The writer raises before the header overwrites data."""
    writer = SafetensorsWriter(tmp_path / "written.safetensors", 16, {})
    writer.add("name", torch.zeros(3))
    with pytest.raises(ValueError, match="16 are reserved"):
        writer.finish()
    writer.close()


def test_a_dtype_that_is_a_list_is_an_error(tmp_path: Path) -> None:
    """The error has the name of the tensor and the value."""
    header = json.dumps({"weight": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))

    with pytest.raises(CheckpointError, match=r"`weight` has dtype \['F32'\]"):
        read_header(tmp_path / "a.safetensors")
