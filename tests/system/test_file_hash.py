"""SHA-256 of files, and their second reading after a change."""

import hashlib
import os
from pathlib import Path

import pytest

from mcpmq.system import file_hash
from mcpmq.system.file_hash import file_sha256

# hashlib.sha256(b"abc"): FIPS 180-2, appendix B.1
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read; those just written count as old."""
    found: list[str] = []
    digest = hashlib.file_digest

    def record(stream: object, name: str) -> object:
        found.append(Path(stream.name).name)  # type: ignore[attr-defined]
        return digest(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", record)
    monkeypatch.setattr(file_hash, "MIN_AGE_NS", -1)
    return found


def test_an_unchanged_file_is_read_once_also_under_another_name(tmp_path: Path, reads: list[str]) -> None:
    """The second hash comes from memory, also if the folder was renamed."""
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "one"
    file.write_bytes(b"abc")

    assert file_sha256(file) == file_sha256(file) == ABC
    (tmp_path / "folder").rename(tmp_path / "other")
    assert file_sha256(tmp_path / "other" / "one") == ABC
    assert reads == ["one"]


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[str], keep_times: bool) -> None:
    """Other bytes of the same number are detected, with a restored time of modification too."""
    file = tmp_path / "one"
    file.write_bytes(b"abd")
    os.utime(file, ns=(10**18, 10**18))
    before = file_sha256(file)
    changed = file.stat().st_ctime_ns

    while file.stat().st_ctime_ns == changed:  # until the next tick of the clock
        file.write_bytes(b"abc")
        if keep_times:
            os.utime(file, ns=(10**18, 10**18))

    assert before != ABC
    assert file_sha256(file) == ABC
    assert len(reads) == 2


def test_a_file_that_was_just_written_is_read_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash is kept only for a file whose last change is a while ago."""
    monkeypatch.setattr(file_hash, "MIN_AGE_NS", 10**12)
    file = tmp_path / "one"
    file.write_bytes(b"abc")

    assert file_sha256(file) == file_sha256(file) == ABC
    assert reads == ["one", "one"]
