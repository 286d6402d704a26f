"""Files of a sample set: the file with the records, and its format."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mcpmq.dataset.draft import DraftSample
from mcpmq.dataset.large_json import LargeJson
from mcpmq.dataset.manifest import MANIFEST_HINT, parse_line
from mcpmq.dataset.options import ReadOptions
from mcpmq.dataset.records import parse_record
from mcpmq.errors import DatasetError
from mcpmq.system.hub_cache import is_inside
from mcpmq.system.json_file import unique_keys
from mcpmq.system.text_file import decode_text, split_lines

MANIFEST = "manifest.jsonl"
MAX_MANIFEST_NBYTES = 64 << 20
WHOLE_NBYTES = 256 << 20  # of a file that is parsed at once; parsed JSON takes several times its size
PERMISSION_HINT = "check the path and its permissions"
JSON_SUFFIXES, PARQUET_SUFFIX = (".json", ".jsonl", ".ndjson"), ".parquet"
TRAINING_SPLIT = "train"  # beginning of the names of its files
RECORDS_HINT = (
    f"give a folder with `{MANIFEST}`, or a file of records: {', '.join((*JSON_SUFFIXES, PARQUET_SUFFIX))};"
    " docs/datasets.md has examples"
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a set, not parsed yet."""

    where: str  # file and line, for errors
    parse: Callable[[], DraftSample]


@dataclass(frozen=True, slots=True)
class RecordSource:
    """The records of a set."""

    file: str  # for errors
    folder: Path  # image paths are relative to it
    count: int
    read: Callable[[Sequence[int]], Iterator[Record]]  # by index, in order
    has_unique_ids: bool = False  # a repeated id is an error


def open_source(path: Path, options: ReadOptions) -> RecordSource:
    """Return the records of a folder with a manifest, a file of records, or a folder of Parquet files.

    Raises:
        DatasetError: no such file exists, or a file is too large or damaged.
    """
    folder = options.image_folder
    try:
        if path.is_file() and path.suffix in JSON_SUFFIXES and path.name != MANIFEST:
            return _json_records(path, folder or path.parent, options)
        if path.is_file() and path.suffix == PARQUET_SUFFIX:
            return _parquet_records([path.resolve()], folder or path.parent, options)
        if path.is_dir() and not (path / MANIFEST).exists() and (files := _parquet_files(path)):
            return _parquet_records(files, folder or path, options)
    except (OSError, ValueError, RuntimeError) as error:  # of the path
        raise DatasetError(f"`{path}` cannot be read: {error}", PERMISSION_HINT) from error
    return _manifest_records(path.parent if path.name == MANIFEST else path, folder)


def has_records(path: Path) -> bool:
    """Return whether a path is that of a sample set."""
    if path.is_dir():
        return (path / MANIFEST).is_file() or bool(_parquet_files(path))
    return path.is_file() and path.suffix in (*JSON_SUFFIXES, PARQUET_SUFFIX)


def _parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, or of its folder `data`, as repositories of datasets have them."""
    files = sorted(folder.glob(f"*{PARQUET_SUFFIX}")) or sorted(folder.glob(f"data/*{PARQUET_SUFFIX}"))
    chosen = select_split([file.name for file in files])
    return [file for file in files if file.name in chosen]


def select_split(names: Sequence[str]) -> list[str]:
    """Return the file names of the training split, or all if none is of it."""
    chosen = [name for name in names if name.rpartition("/")[2].startswith(TRAINING_SPLIT)]
    return chosen or list(names)


def _manifest_records(folder: Path, images: Path | None) -> RecordSource:
    manifest = folder / MANIFEST
    lines = [(number, line) for number, line in enumerate(_manifest_lines(folder), 1) if line.strip()]

    def read(indices: Sequence[int]) -> Iterator[Record]:
        for index in indices:
            number, line = lines[index]
            where = f"`{manifest}` line {number}"
            yield Record(where, partial(_parse_manifest_line, line, where))

    return RecordSource(str(manifest), images or folder, len(lines), read, has_unique_ids=True)


def _parse_manifest_line(line: str, where: str) -> DraftSample:
    return parse_line(_parse_json(line, where), where)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DatasetError(f"{where} is not a JSON object: {reason}", MANIFEST_HINT) from error


def _manifest_lines(folder: Path) -> list[str]:
    manifest = folder / MANIFEST
    try:
        if not manifest.is_file():
            raise DatasetError(f"no `{MANIFEST}` in `{folder}`", f"{MANIFEST_HINT}; or {RECORDS_HINT}")
        if not is_inside(manifest, folder):
            raise DatasetError(f"`{manifest}` is a link out of the folder", "copy the file into the folder")
        return split_lines(_read_text(manifest, MAX_MANIFEST_NBYTES, MANIFEST_HINT))
    except (OSError, ValueError, RuntimeError) as error:  # of the path
        raise DatasetError(f"`{folder}` cannot be read: {error}", PERMISSION_HINT) from error


def _read_text(file: Path, max_nbytes: int, hint: str) -> str:
    if (nbytes := file.stat().st_size) > max_nbytes:
        raise DatasetError(f"`{file}` has {nbytes:,} bytes, more than {max_nbytes:,}", hint)
    content = file.read_bytes()
    try:
        return decode_text(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"`{file}` line {line} is not UTF-8 text: {error.reason}", "save it as UTF-8") from error


def _json_records(file: Path, folder: Path, options: ReadOptions) -> RecordSource:
    """Return the records of a JSON array, or of a file with one JSON object per line."""
    if file.stat().st_size > WHOLE_NBYTES:
        return _large_json_records(file, folder, options)
    text = _read_text(file, WHOLE_NBYTES, PERMISSION_HINT)
    is_array = text.lstrip().startswith("[")
    values = _parse_json(text, f"`{file}`") if is_array else split_lines(text)
    name, parse = ("record", _parse) if is_array else ("line", _parse_line)
    entries = [
        (f"`{file}` {name} {number}", value) for number, value in enumerate(values, 1) if is_array or value.strip()
    ]

    def read(indices: Sequence[int]) -> Iterator[Record]:
        for index in indices:
            where, value = entries[index]
            yield Record(where, partial(parse, value, index + 1, where, options))

    return RecordSource(str(file), folder, len(entries), read)


def _large_json_records(file: Path, folder: Path, options: ReadOptions) -> RecordSource:
    """Return the records of a file that is read record by record."""
    opened = LargeJson.open(file)

    def parse(index: int) -> DraftSample:
        return _parse_line(opened.read(index), index + 1, opened.where(index), options)

    def read(indices: Sequence[int]) -> Iterator[Record]:
        return (Record(opened.where(index), partial(parse, index)) for index in indices)

    return RecordSource(str(file), folder, len(opened), read)


def _parse_line(line: str, number: int, where: str, options: ReadOptions) -> DraftSample:
    return _parse(_parse_json(line, where), number, where, options)


def _parse(record: Any, number: int, where: str, options: ReadOptions) -> DraftSample:
    return parse_record(record, number, where, options.ignored_keys)


def _parquet_records(files: Sequence[Path], folder: Path, options: ReadOptions) -> RecordSource:
    from mcpmq.dataset.parquet import ParquetRows

    rows = ParquetRows.open(files)

    def read(indices: Sequence[int]) -> Iterator[Record]:
        for index, where, value in rows.read(indices):
            yield Record(where, partial(_parse, value, index + 1, where, options))

    return RecordSource(str(files[0]), folder, len(rows), read)
