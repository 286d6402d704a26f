"""Headers are believed only as far as the file bears them out."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mcpmq.errors import CheckpointError
from mcpmq.system.safetensors_file import (
    PACKED_DTYPES,
    GrowingFile,
    read_bytes,
    read_header,
    read_metadata,
    write_file,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of three tensors, written by the reference implementation."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5).bfloat16(), "c": torch.zeros(0)}, path)
    return path


def test_tensors_are_found_where_the_reference_implementation_put_them(file: Path) -> None:
    """Shapes, dtypes and bytes agree with what was saved."""
    entries = read_header(file)

    assert entries["a"].shape == (2, 3)
    assert entries["b"].torch_dtype == "bfloat16"
    assert torch.equal(torch.frombuffer(read_bytes(entries["a"]), dtype=torch.float32), torch.arange(6.0))


def test_what_is_said_beside_the_tensors_is_read_back(file: Path, tmp_path: Path) -> None:
    """By us and by the reference implementation; a file that says nothing says nothing."""
    write_file(tmp_path / "ours.safetensors", {"a": torch.ones(3)}, {"tokens": "{}"})

    assert read_metadata(tmp_path / "ours.safetensors") == {"tokens": "{}"}
    assert read_header(tmp_path / "ours.safetensors").keys() == {"a"}
    with safe_open(tmp_path / "ours.safetensors", "pt") as opened:
        assert opened.metadata() == {"tokens": "{}"}
    assert read_metadata(file) == {}


@pytest.mark.parametrize("said", [3, {"a": 1}, ["x"]])
def test_broken_metadata_is_refused(tmp_path: Path, said: object) -> None:
    """Anything but texts by name is no metadata."""
    header = json.dumps({"__metadata__": said}).encode()
    (tmp_path / "broken.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    with pytest.raises(CheckpointError, match="broken safetensors header"):
        read_metadata(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("nbytes", [0, 3, 8, 40, 200])
def test_a_truncated_file_is_refused(file: Path, nbytes: int) -> None:
    """Whatever is cut off, the header's reading fails, not the conversion."""
    file.write_bytes(file.read_bytes()[:nbytes])

    with pytest.raises(CheckpointError):
        read_header(file)


def test_a_file_that_ends_early_is_refused_with_the_numbers(file: Path) -> None:
    """One missing byte is one byte too few."""
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])

    with pytest.raises(CheckpointError, match=f"{len(whole) - 1:,} bytes, its header asks for {len(whole):,}"):
        read_header(file)


def test_a_file_cut_after_its_header_was_read_is_refused(file: Path) -> None:
    """Reading notices that the file became shorter."""
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
def test_an_entry_that_contradicts_itself_is_refused(tmp_path: Path, entry: object) -> None:
    """Sizes, offsets and dtypes must agree."""
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))

    with pytest.raises(CheckpointError):
        read_header(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 150), value=st.integers(0, 255))
def test_no_damaged_byte_of_the_header_leads_to_anything_but_a_clear_error(
    file: Path, position: int, value: int
) -> None:
    """A flipped byte either leaves a readable header or is a CheckpointError."""
    damaged = bytearray(file.read_bytes())
    damaged[min(position, len(damaged) - 1)] = value
    other = file.with_name("damaged.safetensors")
    other.write_bytes(damaged)

    try:
        for entry in read_header(other).values():
            assert len(read_bytes(entry)) == entry.nbytes
    except CheckpointError:
        pass


def test_a_growing_file_is_one_that_the_reference_reads(tmp_path: Path) -> None:
    """Tensors of every dtype, of odd sizes, scalars and empty ones, added one at a time; all of them aligned."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int8, torch.int32, torch.int64)
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    tensors = {"odd": torch.arange(5, dtype=torch.uint8)} | tensors
    tensors |= {"scalar": torch.tensor(7, dtype=torch.uint8), "empty": torch.empty(0, 3)}
    growing = GrowingFile(tmp_path / "grown.safetensors", 4001, {"format": "pt"})
    for name, tensor in tensors.items():
        growing.add(name, tensor.T if tensor.ndim == 2 else tensor)
    growing.finish()
    loaded = load_file(tmp_path / "grown.safetensors")

    assert growing.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    for entry in read_header(tmp_path / "grown.safetensors", PACKED_DTYPES).values():
        assert entry.offset % PACKED_DTYPES[entry.dtype][1] == 0
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.T if tensor.ndim == 2 else tensor)
    with pytest.raises(CheckpointError, match="cannot be quantized"):
        read_header(tmp_path / "grown.safetensors")


def test_a_header_that_takes_more_room_than_was_kept_is_a_mistake(tmp_path: Path) -> None:
    """Data would be overwritten."""
    growing = GrowingFile(tmp_path / "grown.safetensors", 16, {})
    growing.add("name", torch.zeros(3))
    with pytest.raises(ValueError, match="in room for 16"):
        growing.finish()
    growing.close()
