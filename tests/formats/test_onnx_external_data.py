"""Streamed external data: chunks, alignment, and what is refused."""

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.formats.onnx.external_data import ALIGNMENT_NBYTES, ExternalData, StoredArray


def bytes_array(nbytes: int, value: int = 1) -> StoredArray:
    """`nbytes` bytes, in two parts."""
    parts = [np.full(nbytes // 2, value, np.uint8), np.full(nbytes - nbytes // 2, value, np.uint8)]
    return StoredArray(ir.DataType.UINT8, (nbytes,), parts)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=12))
def test_every_array_reads_back_from_its_place(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrays lie aligned, in chunks under the limit unless one array alone is larger, and hold what was written."""
    folder = tmp_path_factory.mktemp("chunks")
    with closing(ExternalData(folder, "x.onnx_data", largest_chunk_nbytes=512)) as data:
        places = [data.append(f"a{index}", bytes_array(size, index)) for index, size in enumerate(sizes)]
    for index, (place, size) in enumerate(zip(places, sizes, strict=True)):
        assert place.offset is not None
        assert place.offset % ALIGNMENT_NBYTES == 0
        np.testing.assert_array_equal(place.numpy(), np.full(size, index, np.uint8))
    for name in data.files:
        held = [place.length for place in places if Path(place.location).name == name]
        assert (folder / name).stat().st_size <= 512 or len(held) == 1


def test_chunks_are_named_as_transformers_js_names_them(tmp_path: Path) -> None:
    """The first chunk has no number, the second is `_1`."""
    with closing(ExternalData(tmp_path, "x.onnx_data", largest_chunk_nbytes=100)) as data:
        for index in range(3):
            data.append(f"a{index}", bytes_array(90))
    assert data.files == ["x.onnx_data", "x.onnx_data_1", "x.onnx_data_2"]


def test_parts_must_be_as_large_as_the_shape(tmp_path: Path) -> None:
    """An array that gives other bytes than its shape asks for is a bug that does not reach the disk unnoticed."""
    wrong = StoredArray(ir.DataType.FLOAT, (3,), [np.zeros(2, np.float32)])
    with closing(ExternalData(tmp_path, "x.onnx_data")) as data, pytest.raises(ValueError, match="8 bytes"):
        data.append("a", wrong)
