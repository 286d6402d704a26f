"""Records of JSON files that are too large to be parsed whole: their places in the file, and one record at a time."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from mcpmq.errors import DatasetError

CHUNK_NBYTES = 1 << 22  # read at a time
MAX_RECORD_NBYTES = 64 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITESPACE = " \t\r\n"
DAMAGED_HINT = "download the file again, or convert it to JSON lines or Parquet"


@dataclass(frozen=True, slots=True)
class LargeJson:
    """The places of all records of a file: a JSON array, or one JSON object per line, in UTF-8."""

    file: Path
    is_array: bool
    starts: "array[int]" = field(default_factory=lambda: array("Q"))  # bytes
    lengths: "array[int]" = field(default_factory=lambda: array("L"))
    numbers: "array[int]" = field(default_factory=lambda: array("Q"))  # of the record or line, from 1

    @classmethod
    def open(cls, file: Path) -> Self:
        """Read the file once to find its records.

        Raises:
            DatasetError: the file is not valid JSON in UTF-8, or a record is too large.
        """
        with file.open("rb") as stream:
            offset = len(BYTE_ORDER_MARK) if stream.read(3) == BYTE_ORDER_MARK else 0
            stream.seek(offset)
            opened = cls(file, stream.read(CHUNK_NBYTES).lstrip().startswith(b"["))
            stream.seek(offset)
            for number, (start, nbytes) in enumerate(_items(file, stream) if opened.is_array else _lines(stream), 1):
                if nbytes > MAX_RECORD_NBYTES:
                    raise _too_large(file, number)
                if nbytes:
                    opened._add(start, nbytes, number)
        return opened

    def __len__(self) -> int:
        return len(self.starts)

    def _add(self, start: int, nbytes: int, number: int) -> None:
        self.starts.append(start)
        self.lengths.append(nbytes)
        self.numbers.append(number)

    def read(self, index: int) -> str:
        """Return the text of a record.

        Raises:
            DatasetError: it is not UTF-8 text.
        """
        with self.file.open("rb") as stream:
            stream.seek(self.starts[index])
            content = stream.read(self.lengths[index])
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self.where(index)} is not UTF-8 text: {error.reason}", "save it as UTF-8") from error

    def where(self, index: int) -> str:
        """Return the place of a record for errors."""
        return f"`{self.file}` {'record' if self.is_array else 'line'} {self.numbers[index]}"


def _too_large(file: Path, number: int) -> DatasetError:
    return DatasetError(f"record {number:,} of `{file}` has more than {MAX_RECORD_NBYTES:,} bytes", DAMAGED_HINT)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield start and bytes of every line without its end; 0 bytes for an empty one."""
    start = stream.tell()
    for line in stream:
        yield start, len(line.rstrip()) if line.strip() else 0
        start += len(line)


def _items(file: Path, stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield start and bytes of every item of an array."""
    text = _Text(file, stream)
    text.expect("[")
    number = 0
    while text.next_character() != "]":
        if number:
            text.expect(",")
        number += 1
        yield text.item(number)
    text.expect("]")
    if text.next_character():
        raise text.error("has text after its array")


class _Text:
    """The decoded text of a file from its current place on; at most one record and one chunk are in memory."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file, self._stream, self._decoder = file, stream, json.JSONDecoder()
        self._start, self._text, self._rest = stream.tell(), "", b""

    def next_character(self) -> str:
        """Skip white space and return the next character; "" at the end of the file."""
        while True:
            stripped = self._text.lstrip(WHITESPACE)
            self._start += len(self._text) - len(stripped)
            self._text = stripped
            if self._text or not self._extend():
                return self._text[:1]

    def expect(self, character: str) -> None:
        """Skip white space and a character.

        Raises:
            DatasetError: another one follows.
        """
        if (found := self.next_character()) != character:
            raise self.error(f"has `{found}` instead of `{character}`" if found else "ends before its array")
        self._skip(1)

    def item(self, number: int) -> tuple[int, int]:
        """Skip white space and an item; return its start and bytes."""
        self.next_character()
        while True:
            try:
                _, length = self._decoder.raw_decode(self._text)
            except RecursionError as error:
                raise self.error(f"has too many levels in record {number:,}") from error
            except ValueError as error:  # the item is invalid, or its end is not read yet
                if len(self._text) > MAX_RECORD_NBYTES:
                    raise _too_large(self._file, number) from error
                if not self._extend():
                    raise self.error(f"is not valid JSON in record {number:,}: {error}") from error
                continue
            if length == len(self._text) and self._extend():  # a number may go on
                continue
            start = self._start
            return start, self._skip(length)

    def error(self, reason: str) -> DatasetError:
        """Return an error with the place."""
        return DatasetError(f"`{self._file}` {reason} at byte {self._start:,}", DAMAGED_HINT)

    def _skip(self, length: int) -> int:
        nbytes = len(self._text[:length].encode())
        self._start, self._text = self._start + nbytes, self._text[length:]
        return nbytes

    def _extend(self) -> bool:
        """Read more text, at least as much as is in memory; return False at the end of the file."""
        content = self._rest + self._stream.read(max(CHUNK_NBYTES, len(self._text)))
        if not content:
            return False
        end = _whole_characters(content)
        try:
            self._text += content[:end].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"is not UTF-8 text: {error.reason}") from error
        self._rest = content[end:]
        return end > 0


def _whole_characters(content: bytes) -> int:
    """Return the number of bytes before a character whose end is missing."""
    for length in range(1, min(4, len(content)) + 1):
        first = content[-length]
        if first >= 0xC0:  # begins a character of several bytes
            needed = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            return len(content) - length if needed > length else len(content)
        if first < 0x80:
            break
    return len(content)
