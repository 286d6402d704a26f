"""Exclusive locks between processes, with the process that holds them."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mcpmq.system.interruption import cleanup_on_exit

MAX_HOLDER_NBYTES = 512


class LockHeldError(Exception):
    """The lock is held by a process; the message describes the process."""


@contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Hold an exclusive `flock` on a lock file, which contains the process id and is removed afterwards.

    The kernel releases the lock when the process ends, also after SIGKILL; a lock file that remains is not a lock.

    Raises:
        LockHeldError: another process, or another thread of this process, holds the lock.
        OSError: the file cannot be created, is not a regular file, or the file system has no locks.
    """
    descriptor = _acquire(file)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        with cleanup_on_exit(file.unlink):
            yield
    finally:
        with suppress(OSError):
            file.unlink()  # while it is locked, so that no other process has locked this file
        os.close(descriptor)


def _acquire(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, file)
            if _is_named(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder removed the file before its lock was acquired here


def _lock(descriptor: int, file: Path) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise OSError(errno.EINVAL, "the lock file is not a regular file of its own", str(file))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockHeldError(_holder(descriptor)) from None


def _is_named(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Describe the process that holds a lock: `process 4242`, with its host if that is another one."""
    process, _, host = os.pread(descriptor, MAX_HOLDER_NBYTES, 0).decode(errors="replace").strip().partition(" ")
    if not process.isdigit():
        return "another process"
    return f"process {process}" + (f" on {host}" if host != socket.gethostname() else "")
