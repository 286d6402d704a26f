"""Files whose SHA-256 is computed while they are written, so that nothing reads them again."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from mcpmq.system.file_hash import remember_sha256

MAX_PENDING = 2  # arrays that wait for the disk: the next one is computed meanwhile


class HashingFile:
    """A file that one thread hashes and writes while the caller computes the next array."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file, self.nbytes = file, 0
        self._stream, self._digest = stream, hashlib.sha256()
        self._pool, self._pending = ThreadPoolExecutor(1), deque[Future[None]]()

    @classmethod
    def create(cls, file: Path) -> Self:
        """Create a file, or replace its content."""
        return cls(file, file.open("wb", buffering=0))

    @classmethod
    def append_to(cls, file: Path) -> Self:
        """Continue a file of a few megabytes, which is read once."""
        content = file.read_bytes()
        found = cls(file, file.open("ab", buffering=0))
        found._digest.update(content)
        found.nbytes = len(content)
        return found

    def write(self, values: NDArray[np.generic] | bytes) -> None:
        """Write an array in row-major order; it must not change afterwards.

        Raises:
            OSError: this or an earlier array could not be written.
        """
        data = values if isinstance(values, bytes) else np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while len(self._pending) >= MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write, memoryview(data)))
        self.nbytes += len(data)

    def _write(self, data: memoryview) -> None:
        self._digest.update(data)
        while data:
            data = data[self._stream.write(data) :]

    def finish(self) -> None:
        """Wait until everything is written, close the file, and let `file_sha256` know its hash.

        Raises:
            OSError: an array could not be written.
        """
        while self._pending:
            self._pending.popleft().result()
        remember_sha256(self._stream.fileno(), self._digest.hexdigest())
        self.close()

    def close(self) -> None:
        """Close the file, complete or not."""
        self._pool.shutdown()
        self._stream.close()
