"""Files that are hashed while they are written."""

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mcpmq.system.file_hash import file_sha256
from mcpmq.system.hashing_file import HashingFile


def test_content_and_hash_are_those_of_all_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of any layout and bytes are written in row-major order; the hash is known without reading the file."""
    file = tmp_path / "file"
    values = np.arange(60, dtype=np.int16).reshape(6, 10).T
    expected = b"begin" + np.ascontiguousarray(values).tobytes() + b"end" * 9
    file.write_bytes(b"begin")
    with closing(HashingFile.append_to(file)) as stream:
        stream.write(values)
        for _ in range(9):
            stream.write(b"end")
        assert stream.nbytes == len(expected)
        stream.finish()

    monkeypatch.setattr(hashlib, "file_digest", None)
    assert file.read_bytes() == expected
    assert file_sha256(file) == hashlib.sha256(expected).hexdigest()


def test_a_change_after_writing_is_noticed(tmp_path: Path) -> None:
    """A file with other content has its own hash."""
    file = tmp_path / "file"
    with closing(HashingFile.create(file)) as stream:
        stream.write(b"first")
        stream.finish()

    file.write_bytes(b"second")

    assert file_sha256(file) == hashlib.sha256(b"second").hexdigest()


def test_errors_of_the_writing_thread_are_raised(tmp_path: Path) -> None:
    """A disk that is full is an error of the end at the latest."""
    with closing(HashingFile.create(Path("/dev/full"))) as stream:
        stream.write(b"a")
        with pytest.raises(OSError, match="No space left"):
            stream.finish()
    assert not list(tmp_path.iterdir())
