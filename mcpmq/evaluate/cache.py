"""A disk cache of measurements: one folder per entry, with checksums; least recently used entries are evicted first."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mcpmq.errors import OutputError
from mcpmq.system.durable_file import sync_folder, sync_tree, write_durably
from mcpmq.system.temporary_folder import NAME, remove_stale_folders, temporary_folder

MAX_CACHE_NBYTES = 8 << 30
CHECKSUMS = "SHA256SUMS"  # of the other files of an entry; a lock on it protects the entry from eviction


@contextmanager
def open_entry(cache: Path, name: str) -> Iterator[Path | None]:
    """Yield the folder of an entry, which is not evicted inside of the block, and mark it as used.

    Yields None if the entry does not exist; one whose files differ from their checksums is removed, and so are the
    temporary folders of killed runs.
    """
    remove_stale_folders(cache)
    folder = cache / name
    lock = _lock(folder, fcntl.LOCK_SH)
    try:
        if lock is not None and _is_intact(folder):
            with suppress(OSError):  # a cache on a read-only disk
                os.utime(folder)
            yield folder
            return
    finally:
        if lock is not None:
            os.close(lock)
    _remove(folder)
    yield None


@contextmanager
def new_entry(cache: Path, name: str) -> Iterator[Path]:
    """Yield a folder that becomes the entry `name`, with the checksums of its files, if the block succeeds.

    An intact entry of the same name is kept. Other entries are then evicted until all together fit `MAX_CACHE_NBYTES`.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_stale_folders(cache)
    with temporary_folder(cache) as folder:
        partial = folder / name
        partial.mkdir()
        yield partial
        write_durably(partial / CHECKSUMS, _checksums(partial))
        sync_tree(partial)
        if not _is_intact(cache / name):  # else another process has added the entry
            _remove(cache / name)
            with suppress(FileExistsError):
                partial.rename(cache / name)
        sync_folder(cache)
    _evict_lru(cache, name)


def write_error(cache: Path) -> str | None:
    """Return the reason why a cache cannot be written, or None if it can."""
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with temporary_folder(cache):
            return None
    except (OSError, OutputError) as error:
        return str(error)


def _is_intact(folder: Path) -> bool:
    try:
        return (folder / CHECKSUMS).read_text() == _checksums(folder) != ""
    except (OSError, UnicodeDecodeError):
        return False


def _checksums(folder: Path) -> str:
    """Return the checksums of all files in an entry, in the format of `sha256sum --check`."""
    lines = []
    for file in sorted(folder.iterdir()):
        if file.name != CHECKSUMS and file.is_file():
            with file.open("rb") as stream:
                lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {file.name}\n")
    return "".join(lines)


def _lock(folder: Path, mode: int) -> int | None:
    """Return a descriptor with a lock on an entry, or None if the entry is missing or locked by another process."""
    try:
        descriptor = os.open(folder / CHECKSUMS, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # the file system has no locks
        pass
    return descriptor


def _remove(folder: Path) -> None:
    """Remove an entry, unless a process uses it."""
    lock = _lock(folder, fcntl.LOCK_EX)
    if lock is None and (folder / CHECKSUMS).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _evict_lru(cache: Path, new: str) -> None:
    sizes = {folder: folder_nbytes(folder) for folder in cache.iterdir() if folder.is_dir() and _is_evictable(folder)}
    for folder in sorted(sizes, key=lambda one: one.stat().st_mtime):
        if sum(sizes.values()) <= MAX_CACHE_NBYTES:
            break
        if folder.name != new:
            _remove(folder)
            del sizes[folder]


def _is_evictable(folder: Path) -> bool:
    return NAME.fullmatch(folder.name) is None  # of an unfinished entry


def folder_nbytes(folder: Path) -> int:
    """Return the size of all files in a folder, without checksums."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
