"""SHA-256 of files, which are read again only if they changed since this process read or wrote them."""

import hashlib
import os
import time
from pathlib import Path

# A change within a tick of the file system's clock after another one has the same time.
MIN_AGE_NS = 100_000_000

Identity = tuple[int, int, int, int, int]
_known: dict[Identity, str] = {}


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file.

    The file is known by device, inode, size, and the times of its last modification and change, which every write
    sets; a renamed file is the same.
    """
    with file.open("rb") as stream:
        identity = _identity(stream.fileno())
        if identity in _known:
            return _known[identity]
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if identity == _identity(stream.fileno()) and time.time_ns() - identity[-1] > MIN_AGE_NS:
            _known[identity] = digest
    return digest


def remember_sha256(descriptor: int, sha256: str) -> None:
    """Let `file_sha256` return the hash of an open file, which this process computed while it wrote it."""
    _known[_identity(descriptor)] = sha256


def _identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
