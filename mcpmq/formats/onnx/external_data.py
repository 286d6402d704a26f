"""External data of ONNX graphs: written one weight at a time.

Format: `X.onnx_data`, `X.onnx_data_1`, ... are raw little-endian arrays; the graph references them by file, offset and
length (ExternalData.md of the ONNX specification). The names of the chunks are those of transformers.js.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from mcpmq.system.hashing_file import HashingFile

ALIGNMENT_NBYTES = 64
MAX_CHUNK_NBYTES = (2 << 30) - (1 << 20)  # browsers limit a buffer to 2 GiB


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array that is computed while it is written: the concatenated `parts` are its row-major values."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    parts: Iterable[NDArray[Any]] = ()

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.bitwidth // 8

    def to_external_tensor(self, folder: Path, file: str, offset: int, name: str) -> ir.ExternalTensor:
        """Return the graph's reference to the array."""
        shape = ir.Shape(self.shape)
        return ir.ExternalTensor(file, offset, self.nbytes, self.dtype, shape=shape, name=name, base_dir=folder)


@dataclass(slots=True)
class ChunkLayout:
    """Assign arrays to chunks in the order in which they come; an array larger than a chunk has a chunk of its own."""

    name: str
    max_nbytes: int = MAX_CHUNK_NBYTES
    sizes: dict[str, int] = field(default_factory=dict)  # bytes by file name, in order

    def allocate(self, nbytes: int) -> tuple[str, int]:
        """Return the file and the aligned offset of the next array."""
        last = next(reversed(self.sizes), None)
        end = self.sizes[last] if last else 0
        offset = -(-end // ALIGNMENT_NBYTES) * ALIGNMENT_NBYTES
        if last is None or (end and offset + nbytes > self.max_nbytes):
            last, offset = f"{self.name}_{len(self.sizes)}" if self.sizes else self.name, 0
        self.sizes[last] = offset + nbytes
        return last, offset


class ExternalData:
    """Data sink that writes the chunks of one graph; the caller closes it."""

    def __init__(self, folder: Path, name: str, max_chunk_nbytes: int = MAX_CHUNK_NBYTES) -> None:
        self.folder = folder
        self.chunks = ChunkLayout(name, max_chunk_nbytes)
        self._stream: HashingFile | None = None

    @property
    def files(self) -> list[str]:
        return list(self.chunks.sizes)

    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor:
        """Write an array and return its reference.

        Raises:
            ValueError: the parts do not have the size of the array's shape.
        """
        file, offset = self.chunks.allocate(array.nbytes)
        stream = self._seek(file, offset)
        for part in array.parts:
            stream.write(part)
        if stream.nbytes - offset != array.nbytes:
            raise ValueError(f"`{name}` has {stream.nbytes - offset:,} bytes, its shape requires {array.nbytes:,}")
        return array.to_external_tensor(self.folder, file, offset, name)

    def _seek(self, file: str, offset: int) -> HashingFile:
        """Return the stream of a file, padded to an offset."""
        if self._stream is None or offset == 0:
            self.finish()
            self._stream = HashingFile.create(self.folder / file)
        self._stream.write(bytes(offset - self._stream.nbytes))
        return self._stream

    def finish(self) -> None:
        """Complete the last chunk."""
        if self._stream:
            self._stream.finish()
            self._stream = None

    def close(self) -> None:
        """Close the last chunk, complete or not."""
        if self._stream:
            self._stream.close()


class CountingSink:
    """Data sink that writes nothing and counts the bytes of a graph's weights."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.chunks = ChunkLayout(name)
        self.arrays: dict[str, int] = {}  # bytes, by name

    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor:
        """Count an array and return its reference."""
        self.arrays[name] = array.nbytes
        return array.to_external_tensor(self.folder, *self.chunks.allocate(array.nbytes), name)

    @property
    def files(self) -> list[str]:
        return list(self.chunks.sizes)

    def finish(self) -> None:
        """Complete nothing."""

    def close(self) -> None:
        """Close nothing."""


@dataclass(frozen=True, slots=True)
class SharingSink:
    """Data sink of a graph that has some arrays of another graph, by name, with the same bytes."""

    data: "DataSink"
    shared: Mapping[str, ir.ExternalTensor]

    @property
    def files(self) -> list[str]:
        return self.data.files

    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor:
        """Return the reference to an array in the files of the other graph, or write it.

        Raises:
            ValueError: the array has another size there.
        """
        found = self.shared.get(name)
        if found is None:
            return self.data.append(name, array)
        if found.nbytes != array.nbytes:
            raise ValueError(f"`{name}` has {array.nbytes:,} bytes, and {found.nbytes:,} in the other graph")
        return array.to_external_tensor(self.folder, str(found.location), found.offset or 0, name)

    @property
    def folder(self) -> Path:
        return self.data.folder

    def finish(self) -> None:
        """Complete the last chunk."""
        self.data.finish()

    def close(self) -> None:
        """Close the last chunk."""
        self.data.close()


class DataSink(Protocol):
    """Destination of a graph's weights."""

    @property
    def folder(self) -> Path: ...
    @property
    def files(self) -> list[str]: ...
    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...
