"""The importance-matrix (imatrix) file of llama-quantize and llama-imatrix.

Layout: tools/imatrix in the llama.cpp repository. Every matrix has a tensor `in_sum2`, the sums of the squares of its
inputs by column, and a tensor `counts`, the number of inputs. Both are additive over files.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from mcpmq.errors import FormatError

SUMS_SUFFIX, COUNTS_SUFFIX = ".in_sum2", ".counts"
MAX_COUNT = 2**31 - 1
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True, slots=True)
class ImatrixEntry:
    """Statistics of the inputs of one matrix."""

    square_sums: NDArray[np.float32]  # [columns]
    count: int

    def __add__(self, other: Self) -> "ImatrixEntry":
        """Return the statistics of the inputs of both."""
        return ImatrixEntry(self.square_sums + other.square_sums, self.count + other.count)


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """One file: entries by llama.cpp's tensor names, and the datasets that they were summed over."""

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    samples: int

    def __add__(self, other: Self) -> "ImportanceMatrix":
        """Return the sum of two importance matrices of the same model.

        Raises:
            FormatError: they have different matrices.
        """
        for name in sorted({*self.entries, *other.entries}):
            columns, others = (matrix._columns(name) for matrix in (self, other))
            if columns != others:
                raise FormatError(
                    f"`{name}` has {columns:,} columns in one importance matrix and {others:,} in another",
                    "add importance matrices of the same model only",
                )
        entries = {name: entry + other.entries[name] for name, entry in self.entries.items()}
        return ImportanceMatrix(entries, (*self.datasets, *other.datasets), self.samples + other.samples)

    def _columns(self, name: str) -> int:
        return self.entries[name].square_sums.size if name in self.entries else 0

    def padded(self, columns: Mapping[str, int]) -> "ImportanceMatrix":
        """Pad every entry with zeros to the given number of columns, which llama-quantize requires to be exact.

        Raises:
            FormatError: an entry has more columns, or its matrix is not given.
        """
        entries = {}
        for name, entry in self.entries.items():
            missing = columns.get(name, 0) - entry.square_sums.size
            if missing < 0:
                raise FormatError(
                    f"the importance matrix has {entry.square_sums.size:,} columns of `{name}`, the mmproj file"
                    f" {columns.get(name, 0):,}",
                    "use the mmproj file of the same checkpoint with `--mmproj`",
                )
            entries[name] = ImatrixEntry(np.pad(entry.square_sums, (0, missing)), entry.count)
        return ImportanceMatrix(entries, self.datasets, self.samples)

    def write(self, file: Path) -> None:
        """Write the file; the chunk count is the number of samples, the chunk size their mean number of tokens."""
        largest = max(entry.count for entry in self.entries.values())
        with closing(GGUFWriter(file, "imatrix")) as writer:
            writer.add_type("imatrix")
            writer.add_array(DATASETS, list(self.datasets))
            writer.add_uint32(CHUNK_COUNT, self.samples)
            writer.add_uint32(CHUNK_SIZE, -(-largest // self.samples))
            for name, entry in sorted(self.entries.items()):
                writer.add_tensor(name + SUMS_SUFFIX, entry.square_sums[None])
                writer.add_tensor(name + COUNTS_SUFFIX, np.array([[entry.count]], np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file of mcpmq or of llama-imatrix.

        Raises:
            FormatError: it is not an importance-matrix file.
        """
        with _opened(file, "importance-matrix") as reader:
            tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
            names = [name.removesuffix(SUMS_SUFFIX) for name in tensors if name.endswith(SUMS_SUFFIX)]
            entries = {
                name: ImatrixEntry(tensors[name + SUMS_SUFFIX].ravel(), round(tensors[name + COUNTS_SUFFIX].item()))
                for name in names
            }
            datasets, samples = (reader.fields[key].contents() for key in (DATASETS, CHUNK_COUNT))
            if not 0 < samples <= MAX_COUNT or not all(0 <= entry.count <= MAX_COUNT for entry in entries.values()):
                raise ValueError(f"a count of samples or tokens is not between 0 and {MAX_COUNT:,}")
            return cls(entries, tuple(map(str, datasets)), int(samples))


def column_counts(file: Path, min_columns: Mapping[str, int]) -> dict[str, int]:
    """Return the number of columns of matrices in a GGUF file, where an intermediate size may be padded.

    Raises:
        FormatError: it is not a GGUF file, or a matrix is missing or has fewer columns than `min_columns`.
    """
    with _opened(file, "GGUF") as reader:
        columns = {tensor.name: int(tensor.shape[0]) for tensor in reader.tensors}
    for name, expected in min_columns.items():
        if columns.get(name, 0) < expected:
            raise FormatError(
                f"`{file}` has {columns.get(name, 0):,} columns in `{name}`, the checkpoint has {expected:,}",
                "use an mmproj file of this checkpoint; in old mmproj files `ffn_up` and `ffn_down` are swapped",
            )
    return {name: columns[name] for name in min_columns}


@contextmanager
def _opened(file: Path, kind: str) -> Iterator[GGUFReader]:
    """Open a file and turn the exceptions of reading it into a FormatError; gguf-py validates little."""
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is not a regular file")
        yield GGUFReader(file)
    except (OSError, ValueError, TypeError, LookupError, MemoryError, OverflowError) as error:
        raise FormatError(
            f"`{file}` is not a valid {kind} file: {type(error).__name__}: {error}", "create or download it again"
        ) from error
