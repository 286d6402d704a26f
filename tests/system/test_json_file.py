"""JSON objects from untrusted files."""

from pathlib import Path

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.system import json_file
from mcpmq.system.json_file import read_json


def test_an_object_is_read(tmp_path: Path) -> None:
    """Its keys and values."""
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds no JSON object"),
        (b"", "not valid JSON"),
    ],
)
def test_what_is_no_object_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    """Broken, too deep or of another type: the file stands in the error."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(caught.value)


def test_a_missing_and_an_enormous_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of it is read."""
    with pytest.raises(CheckpointError, match=r"no `a.json`"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": 1}')
    monkeypatch.setattr(json_file, "LARGEST_JSON_NBYTES", 7)
    with pytest.raises(CheckpointError, match="8 bytes, more than 7"):
        read_json(tmp_path / "a.json")
