"""The importance-matrix (imatrix) file of llama-quantize and llama-imatrix.

Layout: tools/imatrix in the llama.cpp repository. Every matrix has a tensor `in_sum2`, the sums of the squares of its
inputs by column, and a tensor `counts`, the number of inputs. Both are additive over files. The matrices of experts,
which are one tensor of the model, have a row each.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
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
    """Statistics of the inputs of one matrix, or of one matrix of every expert."""

    square_sums: NDArray[np.float32]  # [columns], or [experts, columns]
    count: int  # of all experts together
    expert_counts: NDArray[np.int64] | None = None  # [experts]

    def __add__(self, other: Self) -> "ImatrixEntry":
        """Return the statistics of the inputs of both."""
        counts = self.expert_counts if other.expert_counts is None else other.expert_counts + self._counts
        return ImatrixEntry(self.square_sums + other.square_sums, self.count + other.count, counts)

    @classmethod
    def from_stored(cls, square_sums: NDArray[np.float32], counts: NDArray[np.float32]) -> Self:
        """Return the statistics of the tensors `in_sum2` [matrices, columns] and `counts` [matrices, 1]."""
        if len(square_sums) == 1:
            return cls(square_sums[0], round(counts.item()))
        rounded = counts.round().astype(np.int64).ravel()
        return cls(square_sums, int(rounded.sum()), rounded)

    @property
    def columns(self) -> int:
        return int(self.square_sums.shape[-1])

    @property
    def _counts(self) -> NDArray[np.int64]:
        """Return the number of inputs of every matrix, [matrices]."""
        return np.array([self.count]) if self.expert_counts is None else self.expert_counts

    def to_stored(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the tensors `in_sum2` and `counts`."""
        return self.square_sums.reshape(-1, self.columns), self._counts[:, None].astype(np.float32)

    def padded(self, columns: int) -> "ImatrixEntry":
        """Return the statistics with zeros for this number of further columns."""
        widths = [(0, 0)] * (self.square_sums.ndim - 1) + [(0, columns)]
        return replace(self, square_sums=np.pad(self.square_sums, widths))

    def of_expert(self, expert: int) -> "ImatrixEntry":
        """Return the statistics of one expert."""
        return ImatrixEntry(self.square_sums[expert], int(self._counts[expert]))


def stack_entries(entries: Sequence[ImatrixEntry]) -> ImatrixEntry:
    """Return the statistics of the matrices of a tensor: of one matrix, or of all experts."""
    if len(entries) == 1:
        return entries[0]
    counts = np.array([entry.count for entry in entries])
    return ImatrixEntry(np.stack([entry.square_sums for entry in entries]), int(counts.sum()), counts)


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
        return self.entries[name].columns if name in self.entries else 0

    def padded(self, columns: Mapping[str, int]) -> "ImportanceMatrix":
        """Pad every entry with zeros to the given number of columns, which llama-quantize requires to be exact.

        Raises:
            FormatError: an entry has more columns, or its matrix is not given.
        """
        entries = {}
        for name, entry in self.entries.items():
            missing = columns.get(name, 0) - entry.columns
            if missing < 0:
                raise FormatError(
                    f"the importance matrix has {entry.columns:,} columns of `{name}`, the mmproj file"
                    f" {columns.get(name, 0):,}",
                    "use the mmproj file of the same checkpoint with `--mmproj`",
                )
            entries[name] = entry.padded(missing)
        return ImportanceMatrix(entries, self.datasets, self.samples)

    def completed(self, columns: Mapping[str, int]) -> "ImportanceMatrix":
        """Add entries without inputs for the given matrices that have none, so that others can be added."""
        empty = {name: ImatrixEntry(np.zeros(size, np.float32), 0) for name, size in columns.items()}
        return replace(self, entries={**empty, **self.entries})

    def observed(self) -> "ImportanceMatrix":
        """Return the entries of matrices that received inputs."""
        return replace(self, entries={name: entry for name, entry in self.entries.items() if entry.count})

    def write(self, file: Path) -> None:
        """Write the file; the chunk count is the number of samples, the chunk size their mean number of tokens."""
        largest = max(entry.count for entry in self.entries.values())
        with closing(GGUFWriter(file, "imatrix")) as writer:
            writer.add_type("imatrix")
            writer.add_array(DATASETS, list(self.datasets))
            writer.add_uint32(CHUNK_COUNT, self.samples)
            writer.add_uint32(CHUNK_SIZE, -(-largest // self.samples))
            for name, entry in sorted(self.entries.items()):
                for suffix, tensor in zip((SUMS_SUFFIX, COUNTS_SUFFIX), entry.to_stored(), strict=True):
                    writer.add_tensor(name + suffix, tensor)
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
                name: ImatrixEntry.from_stored(tensors[name + SUMS_SUFFIX], tensors[name + COUNTS_SUFFIX])
                for name in names
            }
            datasets, samples = (reader.fields[key].contents() for key in (DATASETS, CHUNK_COUNT))
            if not 0 < samples <= MAX_COUNT or not all(0 <= entry.count <= MAX_COUNT for entry in entries.values()):
                raise ValueError(f"a count of samples or tokens is not between 0 and {MAX_COUNT:,}")
            return cls(entries, tuple(map(str, datasets)), int(samples))


def column_counts(file: Path, min_columns: Mapping[str, int], optional: tuple[str, ...] = ()) -> dict[str, int]:
    """Return the number of columns of matrices in a GGUF file, where an intermediate size may be padded.

    Matrices whose names begin with one of `optional` may be missing, and then have the columns of `min_columns`.

    Raises:
        FormatError: it is not a GGUF file, or a matrix is missing or has fewer columns than `min_columns`.
    """
    with _opened(file, "GGUF") as reader:
        columns = {tensor.name: int(tensor.shape[0]) for tensor in reader.tensors}
    columns = {name: size for name, size in min_columns.items() if name.startswith(optional)} | columns
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
