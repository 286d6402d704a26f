"""Split GGUF files into parts of a maximum size that llama.cpp loads.

Convention: llama-gguf-split in the llama.cpp repository. Parts are named `X-00001-of-00003.gguf`; the first has the
metadata, all have `split.no`, `split.count` and `split.tensors.count`. No byte of a tensor is changed.
"""

import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf import GGUF_MAGIC, GGUF_VERSION, GGUFReader, GGUFValueType, ReaderTensor

from mcpmq.artifact import Artifact
from mcpmq.errors import ReleaseError

HEADER_NBYTES = 24  # magic, version, number of tensors, number of keys
SPLIT_KEY_COUNT = 3
COPY_BUFFER_NBYTES = 1 << 24
OFFSET_NBYTES = 8


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    info: bytes  # name, shape and type, without the offset
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to split: its metadata bytes and its tensors."""

    path: Path
    alignment: int
    keys: bytes
    key_count: int
    tensors: tuple[_Tensor, ...]

    def padded(self, nbytes: int) -> int:
        return -(-nbytes // self.alignment) * self.alignment


def split_files(artifact: Artifact, out: Path, max_nbytes: int) -> dict[str, list[str]]:
    """Copy an artifact into `out` and split the language model if it is too large: component -> file names.

    llama.cpp loads a split language model, but not parts of an mmproj file.

    Raises:
        ReleaseError: the mmproj file or one tensor is larger than a part.
    """
    files: dict[str, list[str]] = {}
    for record in artifact.manifest.files:
        names = [record.path]
        if record.nbytes <= max_nbytes:
            shutil.copyfile(artifact.path / record.path, out / record.path)
        elif record.component == "language":
            names = split_gguf(artifact.path / record.path, out, max_nbytes)
        else:
            raise ReleaseError(
                f"`{record.path}` has {record.nbytes:,} bytes, and llama.cpp cannot load an mmproj file in parts",
                f"allow parts of {record.nbytes:,} bytes, or use fewer bits for `vision.*`",
            )
        files.setdefault(record.component, []).extend(names)
    return files


def split_gguf(file: Path, out: Path, max_nbytes: int) -> list[str]:
    """Write the parts of a file into `out`; return their names.

    Raises:
        ReleaseError: one tensor with its metadata is larger than a part.
    """
    source = _read(file)
    parts = list(_parts(source, max_nbytes))
    names = [f"{file.stem}-{number:05d}-of-{len(parts):05d}.gguf" for number in range(1, len(parts) + 1)]
    with file.open("rb") as stream:
        for index, (name, tensors) in enumerate(zip(names, parts, strict=True)):
            with (out / name).open("wb") as part:
                part.write(_header(source, index, len(parts), tensors))
                _copy_tensors(part, stream, source, tensors)
    return names


def _read(file: Path) -> _Source:
    reader = GGUFReader(file)
    keys_end = int(reader.tensors[0].field.offset)
    keys, key_count = reader.data[HEADER_NBYTES:keys_end].tobytes(), int(reader.fields["GGUF.kv_count"].contents())
    tensors = tuple(_tensor(reader, tensor) for tensor in reader.tensors)
    return _Source(file, int(reader.alignment), keys, key_count, tensors)


def _tensor(reader: GGUFReader, tensor: ReaderTensor) -> _Tensor:
    begin = int(tensor.field.offset)
    end = begin + sum(int(part.nbytes) for part in tensor.field.parts) - OFFSET_NBYTES
    info = reader.data[begin:end].tobytes()
    return _Tensor(tensor.name, info, int(tensor.data_offset), int(tensor.n_bytes))


def _parts(source: _Source, max_nbytes: int) -> Iterator[list[_Tensor]]:
    """Yield the tensors of each part: as many as fit, in their order."""
    part: list[_Tensor] = []
    is_first = True
    for tensor in source.tensors:
        if part and _part_nbytes(source, [*part, tensor], is_first) > max_nbytes:
            yield part
            part, is_first = [], False
        part.append(tensor)
        if (nbytes := _part_nbytes(source, part, is_first)) > max_nbytes:
            raise ReleaseError(
                f"`{tensor.name}` of `{source.path.name}` needs a part of {nbytes:,} bytes, the maximum is"
                f" {max_nbytes:,}",
                "allow larger parts: a tensor cannot be split",
            )
    yield part


def _part_nbytes(source: _Source, tensors: list[_Tensor], is_first: bool) -> int:
    header = HEADER_NBYTES + len(_split_keys(source, 0, 0)) + (len(source.keys) if is_first else 0)
    header += sum(len(tensor.info) + OFFSET_NBYTES for tensor in tensors)
    return source.padded(header) + sum(source.padded(tensor.nbytes) for tensor in tensors)


def _header(source: _Source, index: int, count: int, tensors: list[_Tensor]) -> bytes:
    keys, key_count = (source.keys, source.key_count) if index == 0 else (b"", 0)
    counts = struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(tensors), key_count + SPLIT_KEY_COUNT)
    infos, offset = b"", 0
    for tensor in tensors:
        infos += tensor.info + struct.pack("<Q", offset)
        offset += source.padded(tensor.nbytes)
    return counts + keys + _split_keys(source, index, count) + infos


def _split_keys(source: _Source, index: int, count: int) -> bytes:
    """Return the keys of a part: its index, the number of parts, and the number of tensors in all parts."""
    entries = (
        ("split.no", GGUFValueType.UINT16, "H", index),
        ("split.count", GGUFValueType.UINT16, "H", count),
        ("split.tensors.count", GGUFValueType.INT32, "i", len(source.tensors)),
    )
    return b"".join(_key(*entry) for entry in entries)


def _key(name: str, kind: GGUFValueType, code: str, value: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{code}", kind, value)


def _copy_tensors(part: BinaryIO, stream: BinaryIO, source: _Source, tensors: list[_Tensor]) -> None:
    for tensor in tensors:
        part.write(bytes(source.padded(part.tell()) - part.tell()))
        stream.seek(tensor.begin)
        for begin in range(0, tensor.nbytes, COPY_BUFFER_NBYTES):
            part.write(stream.read(min(COPY_BUFFER_NBYTES, tensor.nbytes - begin)))
    part.write(bytes(source.padded(part.tell()) - part.tell()))
