"""Weights beside an ONNX graph: written as they come, so that no more than one is ever in memory.

Format: `X.onnx_data`, `X.onnx_data_1`, ... raw little-endian arrays that the graph refers to by file, offset and
length (ExternalData.md of the ONNX specification); the chunks' names are those of transformers.js.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

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
    parts: Iterable[NDArray[Any]]


class ExternalData:
    """The chunks of one graph, to be closed at the end. An array larger than a chunk gets a chunk of its own."""

    def __init__(self, folder: Path, name: str, largest_chunk_nbytes: int = LARGEST_CHUNK_NBYTES) -> None:
        self.folder = folder
        self.name = name
        self.files: list[str] = []
        self._largest_chunk_nbytes = largest_chunk_nbytes
        self._stream: BinaryIO | None = None

    def append(self, name: str, array: StoredArray) -> ir.ExternalTensor:
        """Write an array; what comes back says where it lies."""
        nbytes = prod(array.shape) * array.dtype.bitwidth // 8
        stream, offset = self._place(nbytes)
        for part in array.parts:
            stream.write(np.ascontiguousarray(part).data)
        if stream.tell() - offset != nbytes:
            raise ValueError(f"`{name}` gave {stream.tell() - offset:,} bytes, its shape asks for {nbytes:,}")
        return ir.ExternalTensor(
            self.files[-1], offset, nbytes, array.dtype, shape=ir.Shape(array.shape), name=name, base_dir=self.folder
        )

    def _place(self, nbytes: int) -> tuple[BinaryIO, int]:
        """The stream to write into, padded to the alignment, and the offset it stands at."""
        position = self._stream.tell() if self._stream else 0
        offset = -(-position // ALIGNMENT_NBYTES) * ALIGNMENT_NBYTES
        if self._stream is None or (position and offset + nbytes > self._largest_chunk_nbytes):
            self._stream, position, offset = self._next_chunk(), 0, 0
        self._stream.write(bytes(offset - position))
        return self._stream, offset

    def _next_chunk(self) -> BinaryIO:
        self.close()
        self.files.append(f"{self.name}_{len(self.files)}" if self.files else self.name)
        return (self.folder / self.files[-1]).open("wb")

    def close(self) -> None:
        """Close the chunk that is being written."""
        if self._stream:
            self._stream.close()
