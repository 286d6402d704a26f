"""Weights beside an ONNX graph: written as they come, so that no more than one is ever in memory.

Format: `X.onnx_data`, `X.onnx_data_1`, ... raw little-endian arrays that the graph refers to by file, offset and
length (ExternalData.md of the ONNX specification); the chunks' names are those of transformers.js.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ALIGNMENT_NBYTES = 64
LARGEST_CHUNK_NBYTES = (2 << 30) - (1 << 20)  # a browser's buffer ends at 2 GiB


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array that is produced while it is written: `parts` in order are its row-major values."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    parts: Iterable[NDArray[Any]] = ()

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.bitwidth // 8

    def lying_in(self, folder: Path, file: str, offset: int, name: str) -> ir.ExternalTensor:
        """What the graph knows of it."""
        shape = ir.Shape(self.shape)
        return ir.ExternalTensor(file, offset, self.nbytes, self.dtype, shape=shape, name=name, base_dir=folder)


@dataclass(slots=True)
class Chunks:
    """Where arrays lie, decided one after the other. An array larger than a chunk gets a chunk of its own."""

    name: str
    largest_nbytes: int = LARGEST_CHUNK_NBYTES
    sizes: dict[str, int] = field(default_factory=dict)  # of every file, in order

    def place(self, nbytes: int) -> tuple[str, int]:
        """The file of the next array, and its aligned offset there."""
        last = next(reversed(self.sizes), None)
        end = self.sizes[last] if last else 0
        offset = -(-end // ALIGNMENT_NBYTES) * ALIGNMENT_NBYTES
        if last is None or (end and offset + nbytes > self.largest_nbytes):
            last, offset = f"{self.name}_{len(self.sizes)}" if self.sizes else self.name, 0
        self.sizes[last] = offset + nbytes
        return last, offset


class ExternalData:
    """The chunks of one graph as they are written, to be closed at the end."""

    def __init__(self, folder: Path, name: str, largest_chunk_nbytes: int = LARGEST_CHUNK_NBYTES) -> None:
        self.folder = folder
        self.chunks = Chunks(name, largest_chunk_nbytes)
        self._stream: BinaryIO | None = None

    @property
    def files(self) -> list[str]:
        return list(self.chunks.sizes)

    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor:
        """Write an array; what comes back says where it lies."""
        file, offset = self.chunks.place(array.nbytes)
        stream = self._at(file, offset)
        for part in array.parts:
            stream.write(np.ascontiguousarray(part).data)
        if stream.tell() - offset != array.nbytes:
            raise ValueError(f"`{name}` gave {stream.tell() - offset:,} bytes, its shape asks for {array.nbytes:,}")
        return array.lying_in(self.folder, file, offset, name)

    def _at(self, file: str, offset: int) -> BinaryIO:
        """The stream to write into, padded to an offset."""
        if self._stream is None or offset == 0:
            self.close()
            self._stream = (self.folder / file).open("wb")
        self._stream.write(bytes(offset - self._stream.tell()))
        return self._stream

    def close(self) -> None:
        """Close the chunk that is being written."""
        if self._stream:
            self._stream.close()


class CountedData:
    """The same chunks with nothing written: what a graph's weights will take."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.chunks = Chunks(name)
        self.arrays: dict[str, int] = {}  # bytes, by name

    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor:
        """Count an array; what comes back says where it would lie."""
        self.arrays[name] = array.nbytes
        return array.lying_in(self.folder, *self.chunks.place(array.nbytes), name)

    @property
    def files(self) -> list[str]:
        return list(self.chunks.sizes)

    def close(self) -> None:
        """Nothing is open."""


class Data(Protocol):
    """Where a graph's weights go."""

    @property
    def files(self) -> list[str]: ...
    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor: ...
    def close(self) -> None: ...
