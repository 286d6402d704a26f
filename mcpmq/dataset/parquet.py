"""Rows of Parquet files, as Hugging Face datasets store them, with images inside of the file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mcpmq.errors import DatasetError, MissingExtra
from mcpmq.system.input_file import check_file

ROWS_PER_BATCH = 16
MAX_IMAGES_NBYTES = 2 << 30  # of all rows that are read: they stay in memory
DAMAGED_HINT = "download the file again"


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """The rows of several files, one after the other."""

    files: tuple[Path, ...]
    counts: tuple[int, ...]  # rows of each file

    @classmethod
    def open(cls, files: Sequence[Path]) -> Self:
        """Read the number of rows of files in one folder, or in its folder `data`.

        Raises:
            DatasetError: a file is a link out of the folder, or not a Parquet file.
            MissingExtra: pyarrow is not installed.
        """
        for file in files:
            check_file(file, file.parent, DatasetError)
        return cls(tuple(files), tuple(_open(file).metadata.num_rows for file in files))

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield index, place and values of the rows with these indices, which increase; other rows are not converted.

        Raises:
            DatasetError: a file is damaged, or the rows are too large.
        """
        chosen, first, nbytes = set(indices), 0, 0
        for file, count in zip(self.files, self.counts, strict=True):
            of_file = {index - first for index in chosen if first <= index < first + count}
            for number, values in _rows(file, of_file) if of_file else ():
                nbytes += _images_nbytes(values)
                if nbytes > MAX_IMAGES_NBYTES:
                    raise DatasetError(
                        f"the images and audio of `{file}` have more than {MAX_IMAGES_NBYTES:,} bytes until row"
                        f" {number + 1:,}",
                        "read a part of the set with `--samples`",
                    )
                yield first + number, f"`{file}` row {number + 1}", values
            first += count


def _rows(file: Path, chosen: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    first = 0
    try:
        for batch in _open(file).iter_batches(ROWS_PER_BATCH):
            for number in range(len(batch)):
                if first + number in chosen:
                    yield first + number, batch.slice(number, 1).to_pylist()[0]
            first += len(batch)
    except (OSError, ValueError, TypeError) as error:  # errors of pyarrow are of these types
        raise DatasetError(f"`{file}` is damaged: {error}", DAMAGED_HINT) from error


def _open(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("parquet", "pyarrow") from error
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise DatasetError(f"`{file}` is not a Parquet file: {error}", DAMAGED_HINT) from error


def _images_nbytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_images_nbytes, value.values()))
    if isinstance(value, list):
        return sum(map(_images_nbytes, value))
    return len(value) if isinstance(value, bytes) else 0
