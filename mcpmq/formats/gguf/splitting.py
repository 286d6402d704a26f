"""A GGUF file in parts of a given size, as llama.cpp splits and loads them.

Convention: `X-00001-of-00003.gguf`, the metadata in the first part, `split.no`, `split.count` and
`split.tensors.count` in all (llama-gguf-split in the sources of llama.cpp). No byte of a tensor is changed.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf import GGUF_MAGIC, GGUF_VERSION, GGUFReader, GGUFValueType

from mcpmq.errors import ReleaseError

HEADER_NBYTES, COUNTED = 24, 3  # magic, version, two counts; keys that every part has
COPIED_NBYTES = 1 << 24  # at a time
OFFSET_NBYTES = 8


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    description: bytes  # up to the offset
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Whole:
    """A file as it was written: its keys and values as they lie there, and its tensors."""

    path: Path
    alignment: int
    keys: bytes
    key_count: int
    tensors: tuple[_Tensor, ...]

    def padded(self, nbytes: int) -> int:
        return -(-nbytes // self.alignment) * self.alignment


def split(file: Path, out: Path, largest_nbytes: int) -> list[str]:
    """Write the parts of a file into `out`; their names.

    Raises:
        ReleaseError: one tensor, or the metadata, does not fit into a part.
    """
    whole = _read(file)
    parts = list(_parts(whole, largest_nbytes))
    names = [f"{file.stem}-{number:05d}-of-{len(parts):05d}.gguf" for number in range(1, len(parts) + 1)]
    with file.open("rb") as source:
        for number, (name, tensors) in enumerate(zip(names, parts, strict=True)):
            with (out / name).open("wb") as stream:
                _write(stream, source, whole, number, len(parts), tensors)
    return names


def _read(file: Path) -> _Whole:
    reader = GGUFReader(file)
    alignment, keys_end = int(reader.alignment), int(reader.tensors[0].field.offset)
    tensors = []
    for tensor in reader.tensors:
        begin = int(tensor.field.offset)
        length = sum(int(part.nbytes) for part in tensor.field.parts) - OFFSET_NBYTES
        description = reader.data[begin : begin + length].tobytes()
        tensors.append(_Tensor(tensor.name, description, int(tensor.data_offset), int(tensor.n_bytes)))
    keys = reader.data[HEADER_NBYTES:keys_end].tobytes()
    return _Whole(file, alignment, keys, int(reader.fields["GGUF.kv_count"].contents()), tuple(tensors))


def _parts(whole: _Whole, largest_nbytes: int) -> Iterator[list[_Tensor]]:
    """As many tensors in each part as fit, in their order."""
    held: list[_Tensor] = []
    first = True
    for tensor in whole.tensors:
        if held and _nbytes(whole, [*held, tensor], first) > largest_nbytes:
            yield held
            held, first = [], False
        held.append(tensor)
        if _nbytes(whole, held, first) > largest_nbytes:
            raise ReleaseError(
                f"`{tensor.name}` of `{whole.path.name}` takes a part of {_nbytes(whole, held, first):,} bytes, which"
                f" is more than {largest_nbytes:,}",
                "allow larger parts: a tensor cannot be divided",
            )
    yield held


def _nbytes(whole: _Whole, tensors: list[_Tensor], first: bool) -> int:
    head = HEADER_NBYTES + len(_numbers(whole, 0, 0)) + (len(whole.keys) if first else 0)
    head += sum(len(tensor.description) + OFFSET_NBYTES for tensor in tensors)
    return whole.padded(head) + sum(whole.padded(tensor.nbytes) for tensor in tensors)


def _head(whole: _Whole, number: int, count: int, tensors: list[_Tensor]) -> bytes:
    keys, key_count = (whole.keys, whole.key_count) if number == 0 else (b"", 0)
    counts = struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(tensors), key_count + COUNTED)
    described, offset = b"", 0
    for tensor in tensors:
        described += tensor.description + struct.pack("<Q", offset)
        offset += whole.padded(tensor.nbytes)
    return counts + keys + _numbers(whole, number, count) + described


def _numbers(whole: _Whole, number: int, count: int) -> bytes:
    """Which part this is, of how many, and how many tensors there are in all."""
    kinds = (("split.no", GGUFValueType.UINT16, "H", number), ("split.count", GGUFValueType.UINT16, "H", count))
    tensors = "split.tensors.count", GGUFValueType.INT32, "i", len(whole.tensors)
    return b"".join(_key(*one) for one in (*kinds, tensors))


def _key(name: str, kind: GGUFValueType, code: str, value: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{code}", kind, value)


def _write(stream: BinaryIO, source: BinaryIO, whole: _Whole, number: int, count: int, tensors: list[_Tensor]) -> None:
    stream.write(_head(whole, number, count, tensors))
    for tensor in tensors:
        stream.write(bytes(whole.padded(stream.tell()) - stream.tell()))
        source.seek(tensor.begin)
        for begin in range(0, tensor.nbytes, COPIED_NBYTES):
            stream.write(source.read(min(COPIED_NBYTES, tensor.nbytes - begin)))
    stream.write(bytes(whole.padded(stream.tell()) - stream.tell()))
