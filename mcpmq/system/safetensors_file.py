"""Safetensors headers and ranges, by plain reads: a memory map would count the whole file as resident.

Format, as the safetensors project describes it: 8 bytes little-endian header length, a JSON header, the data.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpmq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DTYPES = {"BF16": ("bfloat16", 2), "F16": ("float16", 2), "F32": ("float32", 4), "U8": ("uint8", 1)}
PACKED_DTYPES = DTYPES | {"I8": ("int8", 1), "I32": ("int32", 4), "I64": ("int64", 8)}  # of packed weights, too
METADATA = "__metadata__"
ALIGNMENT = 8
LARGEST_HEADER_NBYTES = 100 << 20  # the limit of the reference implementation


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies."""

    file: Path
    dtype: str  # as safetensors writes it, `BF16`
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int

    @property
    def torch_dtype(self) -> str:
        return PACKED_DTYPES[self.dtype][0]


def read_header(file: Path, dtypes: "Mapping[str, tuple[str, int]]" = DTYPES) -> dict[str, Entry]:
    """Every tensor of a file, by name, checked against the size of the file.

    Raises:
        CheckpointError: the file is truncated, inconsistent, or holds a dtype that is not among `dtypes`.
    """
    table, data_start = _read_table(file)
    entries = {name: _entry(file, data_start, name, value, dtypes) for name, value in table.items() if name != METADATA}
    _check_extent(file, file.stat().st_size, data_start, entries)
    return entries


def read_metadata(file: Path) -> dict[str, str]:
    """What a file's header says beside the tensors.

    Raises:
        CheckpointError: the file is truncated, or its header is broken.
    """
    found = _read_table(file)[0].get(METADATA, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"`{file}` has a broken safetensors header", "fetch it again")
    return found


def _read_table(file: Path) -> tuple[dict[str, Any], int]:
    file_nbytes = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(file_nbytes - 8, LARGEST_HEADER_NBYTES):
            raise CheckpointError(f"`{file}` is no whole safetensors file ({file_nbytes:,} bytes)", "fetch it again")
        return _parse(file, stream.read(length)), 8 + length


def _parse(file: Path, header: bytes) -> dict[str, Any]:
    try:
        table = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{file}` has a broken safetensors header", "fetch it again") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"`{file}` has a broken safetensors header", "fetch it again")
    return table


def _entry(file: Path, data_start: int, name: str, value: object, dtypes: "Mapping[str, tuple[str, int]]") -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]  # type: ignore[index]
        sizes_are_whole = all(type(size) is int and size >= 0 for size in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"`{file}` has a broken header entry for `{name}`", "fetch it again") from error
    if dtype not in dtypes:
        raise CheckpointError(
            f"`{name}` has dtype {dtype}, which cannot be quantized", f"full-precision dtypes are: {', '.join(dtypes)}"
        )
    if not sizes_are_whole or end - begin != prod(shape) * dtypes[dtype][1]:
        raise CheckpointError(f"`{file}` has inconsistent sizes for `{name}`", "fetch it again")
    return Entry(file, dtype, shape, data_start + begin, end - begin)


def _check_extent(file: Path, file_nbytes: int, data_start: int, entries: dict[str, Entry]) -> None:
    end = data_start
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        if entry.offset != end:
            raise CheckpointError(f"`{file}` has overlapping or missing data at byte {end:,}", "fetch it again")
        end += entry.nbytes
    if end != file_nbytes:
        raise CheckpointError(f"`{file}` has {file_nbytes:,} bytes, its header asks for {end:,}", "fetch it again")


def read_bytes(entry: Entry, begin: int = 0, end: int | None = None) -> bytearray:
    """The bytes of one tensor, or those from `begin` to `end`.

    Raises:
        CheckpointError: the file became shorter after its header was read.
    """
    buffer = bytearray((entry.nbytes if end is None else end) - begin)
    with entry.file.open("rb", buffering=0) as stream:
        stream.seek(entry.offset + begin)
        view, done = memoryview(buffer), 0
        while done < len(buffer) and (count := stream.readinto(view[done:])):
            done += count
    if done < len(buffer):
        raise CheckpointError(f"`{entry.file}` ended {len(buffer) - done:,} bytes early", "fetch it again")
    return buffer


def write_file(file: Path, tensors: "Mapping[str, Tensor]", metadata: "Mapping[str, str] | None" = None) -> None:
    """Write tensors one after the other, without the copy of all that the reference implementation makes."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = _described(tensor, begin)
    text = _encoded(header)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            stream.write(_bytes_of(tensor))


class GrowingFile:
    """A file that tensors are added to one at a time; the room that was kept before them is filled at the end.

    Format: the header of a safetensors file may end in spaces. Data stays aligned, as the reference implementation has
    it: a tensor that does not fill whole 8 bytes, which only small ones do, is kept and comes last.
    """

    def __init__(self, file: Path, header_nbytes: int, metadata: "Mapping[str, str]") -> None:
        self._header: dict[str, Any] = {METADATA: dict(metadata)}
        self._room = header_nbytes + -header_nbytes % ALIGNMENT
        self._last: dict[str, Tensor] = {}
        self.nbytes = 0  # of the data, without the last
        self._stream = file.open("wb")
        self._stream.write(struct.pack("<Q", self._room) + b" " * self._room)

    def add(self, name: str, tensor: "Tensor") -> None:
        """Write one more tensor; it need not be kept."""
        if tensor.nbytes % ALIGNMENT:
            self._last[name] = tensor
        else:
            self._write(name, tensor)

    def _write(self, name: str, tensor: "Tensor") -> None:
        self._header[name] = _described(tensor, self.nbytes)
        self.nbytes += self._stream.write(_bytes_of(tensor))

    def finish(self) -> None:
        """Write what comes last, fill in the header and close.

        Raises:
            ValueError: it takes more room than was kept for it.
        """
        for name in sorted(self._last, key=lambda name: -self._last[name].element_size()):
            self._write(name, self._last[name])
        text = _encoded(self._header)
        if len(text) > self._room:
            raise ValueError(f"a header of {len(text):,} bytes in room for {self._room:,}")
        self._stream.seek(8)
        self._stream.write(text)
        self.close()

    def close(self) -> None:
        """Close the file, whole or not."""
        self._stream.close()


def _described(tensor: "Tensor", begin: int) -> dict[str, Any]:
    names = {torch_name: name for name, (torch_name, _) in PACKED_DTYPES.items()}
    dtype = names[str(tensor.dtype).removeprefix("torch.")]
    return {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, begin + tensor.nbytes]}


def _encoded(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % ALIGNMENT)  # the data begins aligned, as the reference implementation writes it


def _bytes_of(tensor: "Tensor") -> memoryview:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
