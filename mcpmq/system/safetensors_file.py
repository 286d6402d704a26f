"""Read safetensors headers and byte ranges with plain reads, and write files one tensor at a time.

A memory map, as in `safetensors.safe_open`, would count the whole file in the resident set size.
Format: 8 bytes little-endian header length, a JSON header, the data (https://github.com/huggingface/safetensors).
"""

import json
import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcpmq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

DTYPES = {"BF16": ("bfloat16", 2), "F16": ("float16", 2), "F32": ("float32", 4), "U8": ("uint8", 1)}
PACKED_DTYPES = DTYPES | {"I8": ("int8", 1), "I32": ("int32", 4), "I64": ("int64", 8), "U32": ("uint32", 4)}
FLOAT_DTYPES = frozenset({"BF16", "F16", "F32", "F64"})
STORED_DTYPES = PACKED_DTYPES | {  # every dtype of whole bytes; a checkpoint may store tensors that are not its weights
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
    "BOOL": ("bool", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "U64": ("uint64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
}
METADATA = "__metadata__"
COMPARED_VALUES = 1 << 22  # values in memory at a time
ALIGNMENT = 8
REFETCH = "fetch it again"
MAX_HEADER_NBYTES = 100 << 20  # the limit of the reference implementation


@dataclass(frozen=True, slots=True)
class TransposedPart:
    """Adjacent columns of a matrix in a file; transposed they are a tensor [count, matrix rows]."""

    matrix_columns: int
    first_column: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Location, dtype and shape of one tensor in a file, of some of its rows, or of a transposed part of a matrix."""

    file: Path
    dtype: str  # as safetensors writes it, `BF16`
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int
    rows: "NDArray[np.int64] | None" = field(default=None, compare=False)  # of the file, in the order of this tensor
    transposed: TransposedPart | None = None  # of the matrix at `offset`

    def select_rows(self, rows: "NDArray[np.int64]") -> "TensorEntry":
        """Return the tensor of some rows of a whole tensor."""
        assert self.rows is None
        row_nbytes = self.nbytes // self.shape[0]
        return replace(self, shape=(len(rows), *self.shape[1:]), nbytes=len(rows) * row_nbytes, rows=rows)

    @property
    def torch_dtype(self) -> str:
        return STORED_DTYPES[self.dtype][0]


def read_header(file: Path, dtypes: "Mapping[str, tuple[str, int]]" = DTYPES) -> dict[str, TensorEntry]:
    """Return every tensor of a file by name, checked against the size of the file.

    Raises:
        CheckpointError: the file is truncated, inconsistent, or has a dtype that is not in `dtypes`.
    """
    table, data_start = _read_header_json(file)
    entries = {name: _entry(file, data_start, name, value, dtypes) for name, value in table.items() if name != METADATA}
    _check_extent(file, file.stat().st_size, data_start, entries)
    return entries


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata in the header of a file.

    Raises:
        CheckpointError: the file is truncated, or its header is broken.
    """
    metadata = _read_header_json(file)[0].get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"`{file}` has a broken safetensors header", REFETCH)
    return metadata


def _read_header_json(file: Path) -> tuple[dict[str, Any], int]:
    file_nbytes = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(file_nbytes - 8, MAX_HEADER_NBYTES):
            raise CheckpointError(f"`{file}` is truncated or not a safetensors file ({file_nbytes:,} bytes)", REFETCH)
        return _parse(file, stream.read(length)), 8 + length


def _parse(file: Path, header: bytes) -> dict[str, Any]:
    try:
        table = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{file}` has a broken safetensors header", REFETCH) from error
    if not isinstance(table, dict):
        raise CheckpointError(f"`{file}` has a broken safetensors header", REFETCH)
    return table


def _entry(
    file: Path, data_start: int, name: str, value: object, dtypes: "Mapping[str, tuple[str, int]]"
) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]  # type: ignore[index]
        valid_sizes = all(type(size) is int and size >= 0 for size in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"`{file}` has a broken header entry for `{name}`", REFETCH) from error
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise CheckpointError(
            f"`{name}` has dtype {dtype}, which is not supported", "dtypes of full precision: BF16, F16, F32, F64"
        )
    if not valid_sizes or end - begin != prod(shape) * dtypes[dtype][1]:
        raise CheckpointError(f"`{file}` has inconsistent sizes for `{name}`", REFETCH)
    return TensorEntry(file, dtype, shape, data_start + begin, end - begin)


def _check_extent(file: Path, file_nbytes: int, data_start: int, entries: dict[str, TensorEntry]) -> None:
    end = data_start
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        if entry.offset != end:
            raise CheckpointError(f"`{file}` has overlapping or missing data at byte {end:,}", REFETCH)
        end += entry.nbytes
    if end != file_nbytes:
        raise CheckpointError(f"`{file}` has {file_nbytes:,} bytes, its header requires {end:,}", REFETCH)


def read_bytes(entry: TensorEntry, begin: int = 0, end: int | None = None) -> "NDArray[np.uint8]":
    """Return the bytes of one tensor, or its byte range from `begin` to `end`.

    Raises:
        CheckpointError: the file was truncated after its header was read.
    """
    end = entry.nbytes if end is None else end
    if entry.transposed:
        return _read_transposed(entry, entry.transposed)[begin:end]
    values, done = np.empty(end - begin, np.uint8), 0
    with entry.file.open("rb", buffering=0) as stream:
        for offset, nbytes in [(begin, end - begin)] if entry.rows is None else _row_ranges(entry, begin, end):
            stream.seek(entry.offset + offset)
            view, done = values.data[done : done + nbytes], done + nbytes
            while view and (count := stream.readinto(view)):
                view = view[count:]
            if view:
                raise CheckpointError(f"`{entry.file}` ended {len(view):,} bytes early", REFETCH)
    return values


def _read_transposed(entry: TensorEntry, part: TransposedPart) -> "NDArray[np.uint8]":
    """Read the matrix of a part, and return the bytes of the transposed part."""
    count, rows = entry.shape
    item_nbytes = entry.nbytes // (count * rows)
    matrix = replace(entry, transposed=None, nbytes=rows * part.matrix_columns * item_nbytes)
    items = read_bytes(matrix).view(f"V{item_nbytes}").reshape(rows, part.matrix_columns)
    columns = items[:, part.first_column : part.first_column + count]
    return np.ascontiguousarray(columns.T).reshape(-1).view(np.uint8)


def _row_ranges(entry: TensorEntry, begin: int, end: int) -> "Iterator[tuple[int, int]]":
    """Yield offset and size, in the whole tensor, of the bytes `begin` to `end` of selected rows."""
    assert entry.rows is not None
    if begin == end:
        return
    row_nbytes = entry.nbytes // len(entry.rows)
    first = begin // row_nbytes
    rows = entry.rows[first : -(-end // row_nbytes)]
    for run in consecutive_runs(rows):
        skipped = max(0, begin - (first + run.start) * row_nbytes)
        omitted = max(0, (first + run.stop) * row_nbytes - end)
        yield int(rows[run.start]) * row_nbytes + skipped, (run.stop - run.start) * row_nbytes - skipped - omitted


def consecutive_runs(numbers: "NDArray[np.int64]") -> "Iterator[slice]":
    """Yield the ranges of indices in which every number is one more than the one before."""
    breaks = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    yield from (slice(*ends) for ends in pairwise(breaks))


def have_equal_values(first: TensorEntry, second: TensorEntry) -> bool:
    """Compare two tensors of the same shape, a part at a time; the dtypes may be different floating-point dtypes."""
    if first.dtype != second.dtype and not {first.dtype, second.dtype} <= FLOAT_DTYPES:
        return False
    count = prod(first.shape)
    for begin in range(0, count, COMPARED_VALUES):
        end = min(begin + COMPARED_VALUES, count)
        values = _read_values(first, begin, end)
        if not np.array_equal(values, _read_values(second, begin, end), equal_nan=values.dtype == np.float64):
            return False
    return True


def _read_values(entry: TensorEntry, begin: int, end: int) -> "NDArray[Any]":
    """Read values `begin` to `end` of a flat tensor: floats as float64, others as bytes."""
    nbytes = STORED_DTYPES[entry.dtype][1]
    values = read_bytes(entry, begin * nbytes, end * nbytes)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (values.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.view(f"<f{nbytes}").astype(np.float64) if entry.dtype in FLOAT_DTYPES else values


class SafetensorsWriter:
    """Write a file one tensor at a time; the header is written last, into the bytes reserved for it.

    Format: the header may end in spaces. Data is aligned to 8 bytes, as in the reference implementation: a tensor
    whose size is not a multiple of 8 bytes (only small ones) is held in memory and written last.
    """

    def __init__(self, file: Path, header_nbytes: int, metadata: "Mapping[str, str]") -> None:
        self._header: dict[str, Any] = {METADATA: dict(metadata)}
        self._reserved_nbytes = header_nbytes + -header_nbytes % ALIGNMENT
        self._deferred: dict[str, Tensor] = {}
        self.nbytes = 0  # of the data written so far, without deferred tensors
        self._stream = file.open("wb")
        self._stream.write(struct.pack("<Q", self._reserved_nbytes) + b" " * self._reserved_nbytes)

    def add(self, name: str, tensor: "Tensor") -> None:
        """Write one more tensor."""
        if tensor.nbytes % ALIGNMENT:
            self._deferred[name] = tensor
        else:
            self._write(name, tensor)

    def _write(self, name: str, tensor: "Tensor") -> None:
        self._header[name] = _header_entry(tensor, self.nbytes)
        self.nbytes += self._stream.write(_tensor_bytes(tensor))

    def finish(self) -> None:
        """Write the deferred tensors and the header, and close the file.

        Raises:
            ValueError: the header is longer than the bytes reserved for it.
        """
        for name in sorted(self._deferred, key=lambda name: -self._deferred[name].element_size()):
            self._write(name, self._deferred[name])
        text = _encode_header(self._header)
        if len(text) > self._reserved_nbytes:
            raise ValueError(f"the header has {len(text):,} bytes, {self._reserved_nbytes:,} are reserved")
        self._stream.seek(8)
        self._stream.write(text)
        self.close()

    def close(self) -> None:
        """Close the file, complete or not."""
        self._stream.close()


def _header_entry(tensor: "Tensor", begin: int) -> dict[str, Any]:
    names = {torch_name: name for name, (torch_name, _) in PACKED_DTYPES.items()}
    dtype = names[str(tensor.dtype).removeprefix("torch.")]
    return {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.nbytes]}


def _encode_header(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % ALIGNMENT)  # the data begins aligned, as in the reference implementation


def _tensor_bytes(tensor: "Tensor") -> memoryview:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
