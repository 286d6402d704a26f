"""Importance-matrix files round-trip, add up, and are rejected if they are not valid."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.errors import FormatError
from mcpmq.formats.gguf.imatrix_file import ImatrixEntry, ImportanceMatrix, column_counts
from tests.gguf_tools import metadata_value

ALIGNMENT = 32  # the last bytes of a file are padding


def make_imatrix(columns: dict[str, int], seed: int = 0, count: int = 7) -> ImportanceMatrix:
    random = np.random.default_rng(seed)
    entries = {name: ImatrixEntry(random.random(size, np.float32), count + size) for name, size in columns.items()}
    return ImportanceMatrix(entries, (f"set{seed}",), 3)


def assert_same(one: ImportanceMatrix, other: ImportanceMatrix) -> None:
    assert (one.datasets, one.samples) == (other.datasets, other.samples)
    assert one.entries.keys() == other.entries.keys()
    for name, entry in one.entries.items():
        assert np.array_equal(entry.square_sums, other.entries[name].square_sums)
        assert entry.count == other.entries[name].count


@settings(max_examples=30)
@given(
    columns=st.dictionaries(
        st.text("abcxyz0123456789._", min_size=1, max_size=40), st.integers(1, 300), min_size=1, max_size=6
    ),
    count=st.integers(1, 1 << 23),
)
def test_a_file_round_trips(columns: dict[str, int], count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names, columns and counts are arbitrary."""
    file = tmp_path_factory.mktemp("imatrix") / "a.gguf"
    written = make_imatrix(columns, count=count)

    written.write(file)

    assert_same(ImportanceMatrix.read(file), written)


def test_a_file_has_the_keys_and_shapes_of_llama_imatrix(tmp_path: Path) -> None:
    """Sums are float32 [columns, 1], counts float32 [1, 1]."""
    make_imatrix({"blk.0.attn_q.weight": 6}).write(tmp_path / "a.gguf")

    reader = GGUFReader(tmp_path / "a.gguf")

    assert metadata_value(reader, "general.type") == "imatrix"
    assert metadata_value(reader, "imatrix.datasets") == ["set0"]
    assert metadata_value(reader, "imatrix.chunk_count") == 3
    assert metadata_value(reader, "imatrix.chunk_size") == 5  # 13 inputs in 3 samples, rounded up
    shapes = {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors}
    assert shapes == {
        "blk.0.attn_q.weight.in_sum2": ("F32", [6, 1]),
        "blk.0.attn_q.weight.counts": ("F32", [1, 1]),
    }


def test_matrices_add_up() -> None:
    """Addition sums squares, counts and samples, and concatenates datasets."""
    one, other = make_imatrix({"a": 3, "b": 4}), make_imatrix({"a": 3, "b": 4}, seed=1)

    whole = one + other

    assert np.array_equal(whole.entries["b"].square_sums, one.entries["b"].square_sums + other.entries["b"].square_sums)
    assert whole.entries["b"].count == 22
    assert (whole.datasets, whole.samples) == (("set0", "set1"), 6)


@pytest.mark.parametrize("columns", [{"a": 3}, {"a": 3, "b": 5}, {"a": 3, "b": 4, "c": 1}])
def test_matrices_of_different_models_do_not_add_up(columns: dict[str, int]) -> None:
    """Missing matrices, additional matrices and different column counts are errors."""
    with pytest.raises(FormatError, match=r"`[bc]` has .* columns in one importance matrix"):
        make_imatrix({"a": 3, "b": 4}) + make_imatrix(columns)


def test_padded_columns_have_square_sums_of_zero() -> None:
    """The mmproj file may have more columns than the checkpoint, never fewer."""
    padded = make_imatrix({"a": 3}).padded({"a": 5})

    assert padded.entries["a"].square_sums.tolist()[3:] == [0, 0]
    with pytest.raises(FormatError, match="5 columns of `a`, the mmproj file 3"):
        padded.padded({"a": 3})


def test_column_counts_are_read_from_a_file(tmp_path: Path) -> None:
    """All matrices must be present with at least the expected columns."""
    file = tmp_path / "a.gguf"
    make_imatrix({"a": 5}).write(file)

    assert column_counts(file, {"a.in_sum2": 3}) == {"a.in_sum2": 5}
    for wrong in ({"a.in_sum2": 6}, {"b": 1}):
        with pytest.raises(FormatError, match=r"a.gguf` has \d columns in"):
            column_counts(file, wrong)


@settings(max_examples=50)
@given(cut=st.floats(0, 0.999), place=st.floats(0, 0.999), flip=st.integers(0, 255))
def test_a_damaged_file_is_rejected(
    cut: float, place: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A truncated file is an error that names the file; one changed byte gives an error or a readable matrix."""
    file = tmp_path_factory.mktemp("imatrix") / "a.gguf"
    make_imatrix({"a": 5, "b": 40}).write(file)
    whole = file.read_bytes()

    file.write_bytes(whole[: int(cut * (len(whole) - ALIGNMENT))])
    with pytest.raises(FormatError, match=r"a\.gguf"):
        ImportanceMatrix.read(file)

    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= flip
    file.write_bytes(changed)
    with suppress(FormatError):
        ImportanceMatrix.read(file)


def test_a_gguf_file_without_statistics_is_rejected(tmp_path: Path) -> None:
    """A model file is not an importance-matrix file."""
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "qwen2")
    writer.add_tensor("a", np.zeros(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(FormatError, match="is not a valid importance-matrix file: KeyError"):
        ImportanceMatrix.read(tmp_path / "a.gguf")


def test_a_fifo_is_not_read(tmp_path: Path) -> None:
    """A FIFO as mmproj file is an error; reading it would block."""
    os.mkfifo(tmp_path / "mmproj.gguf")
    with pytest.raises(FormatError, match="not a regular file"):
        column_counts(tmp_path / "mmproj.gguf", {})
