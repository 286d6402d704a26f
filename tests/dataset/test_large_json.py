"""Records of files that are read one at a time are those of files that are parsed whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpmq.dataset import ReadOptions, SampleSet
from mcpmq.dataset.large_json import LargeJson
from mcpmq.errors import DatasetError

RECORDS: list[dict[str, Any]] = [
    {"id": f"{number}", "query": f'Où? "{number}" [é, {{🙂}}] \\ "', "response": "x" * number}
    for number in range(1, 40)
]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read every file record by record, a few bytes at a time, so that chunks end inside of characters."""
    monkeypatch.setattr("mcpmq.dataset.source.WHOLE_NBYTES", 0)
    monkeypatch.setattr("mcpmq.dataset.large_json.CHUNK_NBYTES", 5)


def _files(folder: Path) -> list[Path]:
    lines = "\n\n".join(json.dumps(one, ensure_ascii=False) for one in RECORDS)
    contents = {
        "array.json": json.dumps(RECORDS, ensure_ascii=False, indent=1),
        "compact.json": json.dumps(RECORDS),
        "lines.jsonl": lines.replace("\n\n", "\r\n") + "\n",
        "marked.jsonl": f"\ufeff{lines}",
        "marked.json": f"\ufeff  {json.dumps(RECORDS)}\n",
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8", newline="")
    return [folder / name for name in contents]


def test_records_are_those_of_the_whole_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Arrays and lines, with a byte order mark, empty lines and line ends of Windows; also a draw."""
    options = (ReadOptions(), ReadOptions(num_samples=7, seed=3))
    expected = [[SampleSet.open(file, one).sha256 for one in options] for file in _files(tmp_path)]
    request.getfixturevalue("small_chunks")

    assert [[SampleSet.open(file, one).sha256 for one in options] for file in _files(tmp_path)] == expected
    assert len(LargeJson.open(tmp_path / "array.json")) == len(RECORDS)


@pytest.mark.usefixtures("small_chunks")
def test_invalid_records_are_named(tmp_path: Path) -> None:
    """The number of a record or line is that in the file."""
    records = [RECORDS[0], {"query": "no answer"}, RECORDS[1]]
    (tmp_path / "array.json").write_text(json.dumps(records))
    (tmp_path / "lines.jsonl").write_text("\n" + "\n".join(map(json.dumps, records)) + '\n{"query": \n')
    options = ReadOptions(skip_invalid=True)

    assert "array.json` record 2:" in SampleSet.open(tmp_path / "array.json", options).invalid[0]
    first, second = SampleSet.open(tmp_path / "lines.jsonl", options).invalid
    assert "lines.jsonl` line 3:" in first
    assert "lines.jsonl` line 5 is not a JSON object" in second


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"query": 1}', "ends before its array at byte 13"),
        (b'[{"query": 1} {"query": 2}]', "has `{` instead of `,` at byte 14"),
        (b'[{"query": 1}, ]', "is not valid JSON in record 2"),
        (b'[{"query": }]', "is not valid JSON in record 1"),
        (b'[{"query": 1}] x', "has text after its array at byte 15"),
        (b'[{"query": "\xff"}]', "is not UTF-8 text"),
        (b'[{"query": "\xc3', "is not valid JSON in record 1"),
        (b"[" * 100_000, "has too many levels in record 1|is not valid JSON in record 1"),
    ],
)
def test_damaged_arrays_are_errors(content: bytes, message: str, tmp_path: Path) -> None:
    """The error has the place in the file."""
    (tmp_path / "array.json").write_bytes(content)

    with pytest.raises(DatasetError, match=message):
        SampleSet.open(tmp_path / "array.json")


@pytest.mark.usefixtures("small_chunks")
def test_a_large_record_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is in memory, so its size has a limit."""
    monkeypatch.setattr("mcpmq.dataset.large_json.MAX_RECORD_NBYTES", 50)
    (tmp_path / "array.json").write_text(json.dumps([{}, {"query": "x" * 100}]))
    (tmp_path / "lines.jsonl").write_text("{}\n" + "x" * 100)

    for file in ("array.json", "lines.jsonl"):
        with pytest.raises(DatasetError, match="record 2 of .* has more than 50 bytes"):
            SampleSet.open(tmp_path / file)
