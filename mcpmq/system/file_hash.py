"""SHA-256 of files, which are read again only if they changed since this process read them."""

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


def _identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
