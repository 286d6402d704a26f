"""JSON objects from untrusted files."""

from pathlib import Path

import pytest

from mcpmq.errors import ArtifactError, CheckpointError
from mcpmq.system import json_file
from mcpmq.system.json_file import check_integers, read_json, read_text


def test_an_object_is_read(tmp_path: Path) -> None:
    """Keys and values are returned."""
    (tmp_path / "a.json").write_text('{"a": [1, null]}')

    assert read_json(tmp_path / "a.json") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\x00\xff", "not Unicode text"),
        (b'{"a": "\xff"}', "not Unicode text"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_other_content_is_an_error_with_the_file_name(content: bytes, message: str, tmp_path: Path) -> None:
    """Broken, deeply nested or another type: the error names the file."""
    (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_skipped(encoding: str, tmp_path: Path) -> None:
    """Windows editors write them."""
    (tmp_path / "a.json").write_text('{"a": "é"}', encoding=encoding)

    assert read_json(tmp_path / "a.json") == {"a": "é"}
    assert read_text(tmp_path / "a.json") == '{"a": "é"}'


def test_a_missing_file_and_a_large_file_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are errors before the content is read."""
    assert json_file.MAX_JSON_NBYTES == 67_108_864
    with pytest.raises(CheckpointError, match=r"no `a.json`"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": 1}')
    monkeypatch.setattr(json_file, "MAX_JSON_NBYTES", 7)
    with pytest.raises(CheckpointError, match="8 bytes, more than 7"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b'{"a": [{"b": 12345678901234567890}]}', b"[-1000000000000000000000]"])
def test_an_integer_of_more_than_64_bits_is_an_error(content: bytes) -> None:
    """Also a negative one, at any depth."""
    with pytest.raises(ArtifactError, match=r"`a.json` has an integer of 2\d digits") as caught:
        check_integers(Path("a.json"), content, ArtifactError, "evaluate again")
    assert caught.value.hint == "evaluate again"


@pytest.mark.parametrize(
    "content", [b'{"a": 1234567890123456789, "b": 1.5e300, "c": "12345678901234567890123"}', b"[12345678901234567890"]
)
def test_other_numbers_and_invalid_texts_have_no_such_error(content: bytes) -> None:
    """Texts that are not JSON are reported by the reader."""
    check_integers(Path("a.json"), content, ArtifactError, "evaluate again")
