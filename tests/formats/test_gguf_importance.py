"""Importance-matrix files come back as they were written, add up, and are refused when they are none."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.errors import FormatError
from mcpmq.formats.gguf.importance import Entry, ImportanceMatrix, widths_in
from tests.gguf_tools import field

ALIGNMENT = 32  # what fills the last bytes is no loss


def matrix(columns: dict[str, int], seed: int = 0, count: int = 7) -> ImportanceMatrix:
    random = np.random.default_rng(seed)
    entries = {name: Entry(random.random(size, np.float32), count + size) for name, size in columns.items()}
    return ImportanceMatrix(entries, (f"set{seed}",), 3)


def assert_same(one: ImportanceMatrix, other: ImportanceMatrix) -> None:
    assert (one.datasets, one.samples) == (other.datasets, other.samples)
    assert one.entries.keys() == other.entries.keys()
    for name, entry in one.entries.items():
        assert np.array_equal(entry.squares, other.entries[name].squares)
        assert entry.count == other.entries[name].count


@settings(max_examples=30)
@given(
    columns=st.dictionaries(
        st.text("abcxyz0123456789._", min_size=1, max_size=40), st.integers(1, 300), min_size=1, max_size=6
    ),
    count=st.integers(1, 1 << 23),
)
def test_a_file_comes_back(columns: dict[str, int], count: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any names and any numbers of columns."""
    file = tmp_path_factory.mktemp("imatrix") / "a.gguf"
    written = matrix(columns, count=count)

    written.write(file)

    assert_same(ImportanceMatrix.read(file), written)


def test_gguf_py_reads_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    """Keys and shapes are those of llama-imatrix: sums [columns, 1], counts [1, 1], both float32."""
    matrix({"blk.0.attn_q.weight": 5}).write(tmp_path / "a.gguf")

    reader = GGUFReader(tmp_path / "a.gguf")

    assert field(reader, "general.type") == "imatrix"
    assert field(reader, "imatrix.datasets") == ["set0"]
    assert field(reader, "imatrix.chunk_count") == 3
    assert field(reader, "imatrix.chunk_size") == 4  # of 12 inputs of 3 samples
    shapes = {tensor.name: (tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors}
    assert shapes == {
        "blk.0.attn_q.weight.in_sum2": ("F32", [5, 1]),
        "blk.0.attn_q.weight.counts": ("F32", [1, 1]),
    }


def test_matrices_add_up() -> None:
    """Sums, counts, sets and samples."""
    one, other = matrix({"a": 3, "b": 4}), matrix({"a": 3, "b": 4}, seed=1)

    whole = one + other

    assert np.array_equal(whole.entries["b"].squares, one.entries["b"].squares + other.entries["b"].squares)
    assert whole.entries["b"].count == 22
    assert (whole.datasets, whole.samples) == (("set0", "set1"), 6)


@pytest.mark.parametrize("columns", [{"a": 3}, {"a": 3, "b": 5}, {"a": 3, "b": 4, "c": 1}])
def test_matrices_of_different_models_do_not_add_up(columns: dict[str, int]) -> None:
    """Neither more of them nor fewer, nor wider ones."""
    with pytest.raises(FormatError, match=r"`[bc]` has .* columns in one importance matrix"):
        matrix({"a": 3, "b": 4}) + matrix(columns)


def test_columns_that_zeros_added_saw_nothing() -> None:
    """Where a matrix is wider in the file that it is for; it can not be narrower."""
    wide = matrix({"a": 3}).widened({"a": 5})

    assert wide.entries["a"].squares.tolist()[3:] == [0, 0]
    with pytest.raises(FormatError, match="5 columns of `a`, 2 too many"):
        wide.widened({"a": 3})


def test_widths_are_read_from_a_file(tmp_path: Path) -> None:
    """All matrices must be there, none narrower than expected."""
    file = tmp_path / "a.gguf"
    matrix({"a": 5}).write(file)

    assert widths_in(file, {"a.in_sum2": 3}) == {"a.in_sum2": 5}
    for wrong in ({"a.in_sum2": 6}, {"b": 1}):
        with pytest.raises(FormatError, match=r"a.gguf` has \d columns in"):
            widths_in(file, wrong)


@settings(max_examples=50)
@given(cut=st.floats(0, 0.999), place=st.floats(0, 0.999), flip=st.integers(0, 255))
def test_what_is_no_importance_matrix_is_refused(
    cut: float, place: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut short it is an error that names the file; with a byte changed it is that, or still a matrix."""
    file = tmp_path_factory.mktemp("imatrix") / "a.gguf"
    matrix({"a": 5, "b": 40}).write(file)
    whole = file.read_bytes()

    file.write_bytes(whole[: int(cut * (len(whole) - ALIGNMENT))])
    with pytest.raises(FormatError, match=r"a\.gguf"):
        ImportanceMatrix.read(file)

    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= flip
    file.write_bytes(changed)
    with suppress(FormatError):
        ImportanceMatrix.read(file)


def test_another_gguf_file_is_refused(tmp_path: Path) -> None:
    """One without sums and counts."""
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "qwen2")
    writer.add_tensor("a", np.zeros(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(FormatError, match="cannot be read as what it should be"):
        ImportanceMatrix.read(tmp_path / "a.gguf")
