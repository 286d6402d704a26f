"""The importance-matrix file: what llama-quantize and llama-imatrix read and write.

Layout: tools/imatrix in the sources of llama.cpp; for every matrix a tensor `in_sum2` of the squares of its inputs,
summed by column, and a tensor `counts` of how many inputs there were. Files add up.
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

SQUARES, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True, slots=True)
class Entry:
    """Of one matrix: the sums of the squares of its inputs, float32 [columns], and how many inputs there were."""

    squares: NDArray[np.float32]
    count: int

    def __add__(self, other: Self) -> "Entry":
        """What was seen here and there."""
        return Entry(self.squares + other.squares, self.count + other.count)


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """A file: entries by llama.cpp's names of the matrices, and the sets they were summed over."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    samples: int

    def __add__(self, other: Self) -> "ImportanceMatrix":
        """What was seen here and there.

        Raises:
            FormatError: they are of different models.
        """
        for name in sorted({*self.entries, *other.entries}):
            mine, theirs = (one.entries[name].squares.size if name in one.entries else 0 for one in (self, other))
            if mine != theirs:
                raise FormatError(f"`{name}` has {mine:,} columns in one importance matrix and {theirs:,} in another")
        entries = {name: entry + other.entries[name] for name, entry in self.entries.items()}
        return ImportanceMatrix(entries, (*self.datasets, *other.datasets), self.samples + other.samples)

    def widened(self, widths: Mapping[str, int]) -> "ImportanceMatrix":
        """The same where matrices have so many columns: those that were added saw nothing.

        llama-quantize refuses a matrix with as much as one column more or less.

        Raises:
            FormatError: it is of wider or of other matrices.
        """
        entries = {}
        for name, entry in self.entries.items():
            more = widths.get(name, 0) - entry.squares.size
            if more < 0:
                raise FormatError(
                    f"the importance matrix has {entry.squares.size:,} columns of `{name}`, {-more:,} too many",
                    "name the mmproj file that it was made for, with `--mmproj`",
                )
            entries[name] = Entry(np.pad(entry.squares, (0, more)), entry.count)
        return ImportanceMatrix(entries, self.datasets, self.samples)

    def write(self, file: Path) -> None:
        """Write the file. A sample counts as a chunk, as large as samples are on average."""
        largest = max(entry.count for entry in self.entries.values())
        with closing(GGUFWriter(file, "imatrix")) as writer:
            writer.add_type("imatrix")
            writer.add_array(DATASETS, list(self.datasets))
            writer.add_uint32(CHUNK_COUNT, self.samples)
            writer.add_uint32(CHUNK_SIZE, -(-largest // self.samples))
            for name, entry in sorted(self.entries.items()):
                writer.add_tensor(name + SQUARES, entry.squares[None])
                writer.add_tensor(name + COUNTS, np.array([[entry.count]], np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file, also one of llama-imatrix.

        Raises:
            FormatError: it is none.
        """
        with _reading(file) as reader:
            tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
            names = [name.removesuffix(SQUARES) for name in tensors if name.endswith(SQUARES)]
            entries = {
                name: Entry(tensors[name + SQUARES].ravel(), round(tensors[name + COUNTS].item())) for name in names
            }
            datasets, samples = (reader.fields[key].contents() for key in (DATASETS, CHUNK_COUNT))
            return cls(entries, tuple(map(str, datasets)), int(samples))


def widths_in(file: Path, columns: Mapping[str, int]) -> dict[str, int]:
    """How many columns matrices have in a GGUF file, at least so many: a hidden width may have grown by zeros there.

    Raises:
        FormatError: it is none, or it holds other matrices than these.
    """
    with _reading(file) as reader:
        held = {tensor.name: int(tensor.shape[0]) for tensor in reader.tensors}
    for name, least in columns.items():
        if held.get(name, 0) < least:
            raise FormatError(
                f"`{file}` has {held.get(name, 0):,} columns in `{name}`, the checkpoint has {least:,}",
                "name a file of this checkpoint; in old mmproj files `ffn_up` and `ffn_down` are swapped",
            )
    return {name: held[name] for name in columns}


@contextmanager
def _reading(file: Path) -> Iterator[GGUFReader]:
    """A file in the hands of gguf-py, which checks little: whatever it, or what is read inside, stumbles over."""
    try:
        yield GGUFReader(file)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise FormatError(f"`{file}` cannot be read as what it should be: {type(error).__name__}: {error}") from error
