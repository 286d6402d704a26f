"""Private temporary folders: readable by the user alone, and removed after errors, signals and killed runs.

A folder is locked by the process that made it. The system releases the lock when the process ends in any way, and the
next run removes unlocked folders.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from mcpmq.errors import OutputError
from mcpmq.system.interruption import cleanup_on_exit

NAME = re.compile(r"mcpmq-\d+-[a-z0-9_]{8}")  # process id, and the random characters of `mkdtemp`


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent`, by default in the temporary folder of the system; mode 0700.

    Raises:
        OutputError: the folder cannot be created.
    """
    folder, lock = _create(Path(gettempdir()) if parent is None else parent)
    try:
        with cleanup_on_exit(lambda: shutil.rmtree(folder, ignore_errors=True)):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_stale_folders(parent: Path | None = None) -> None:
    """Remove the temporary folders of this user whose process has ended."""
    with suppress(OSError), os.scandir(parent or gettempdir()) as entries:
        for entry in entries:
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_if_unlocked(Path(entry.path))


def _create(parent: Path) -> tuple[Path, int]:
    """Return a folder and its lock; tries again if another process removed the folder before it was locked."""
    try:
        while True:
            folder = Path(mkdtemp(prefix=f"mcpmq-{os.getpid()}-", dir=parent))
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            with suppress(OSError):  # file systems without locks; their folders are never stale
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                return folder, lock
            os.close(lock)
    except OSError as error:
        raise OutputError(
            f"a temporary folder cannot be created in `{parent}`: {error.strerror}",
            "set TMPDIR to a folder that can be written and has free space",
        ) from error


def _remove_if_unlocked(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
