"""External data: chunks, alignment and size checks."""

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.onnx.external_data import ExternalData, StoredArray


def bytes_array(nbytes: int, value: int = 1) -> StoredArray:
    """Return an array of `nbytes` equal bytes, in two parts."""
    parts = [np.full(nbytes // 2, value, np.uint8), np.full(nbytes - nbytes // 2, value, np.uint8)]
    return StoredArray(ir.DataType.UINT8, (nbytes,), parts)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=12))
def test_arrays_read_back_from_their_offsets(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrays are aligned to 64 bytes, in chunks of limited size unless one array is larger, and read back equal."""
    folder = tmp_path_factory.mktemp("chunks")
    with closing(ExternalData(folder, "x.onnx_data", max_chunk_nbytes=512)) as data:
        references = [data.append(f"a{index}", bytes_array(size, index)) for index, size in enumerate(sizes)]
    for index, (reference, size) in enumerate(zip(references, sizes, strict=True)):
        assert reference.offset is not None
        assert reference.offset % 64 == 0
        np.testing.assert_array_equal(reference.numpy(), np.full(size, index, np.uint8))
    for name in data.files:
        lengths = [one.length for one in references if Path(one.location).name == name]
        assert (folder / name).stat().st_size <= 512 or len(lengths) == 1


def test_chunk_names_are_those_of_transformers_js(tmp_path: Path) -> None:
    """The first chunk has no number, the second has the suffix `_1`."""
    with closing(ExternalData(tmp_path, "x.onnx_data", max_chunk_nbytes=100)) as data:
        for index in range(3):
            data.append(f"a{index}", bytes_array(90))
    assert data.files == ["x.onnx_data", "x.onnx_data_1", "x.onnx_data_2"]


def test_parts_of_another_size_than_the_shape_are_an_error(tmp_path: Path) -> None:
    """An array whose parts do not have the size of its shape raises an error."""
    wrong = StoredArray(ir.DataType.FLOAT, (3,), [np.zeros(2, np.float32)])
    with closing(ExternalData(tmp_path, "x.onnx_data")) as data, pytest.raises(ValueError, match="8 bytes"):
        data.append("a", wrong)
