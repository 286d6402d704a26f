"""A disk cache of measurements: one folder per entry; least recently used entries are evicted first."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

MAX_CACHE_NBYTES = 8 << 30
STALE_SECONDS = 24 * 3600  # age at which an unfinished entry is removed: its process was killed


def find_entry(cache: Path, name: str) -> Path | None:
    """Return the folder of an entry and mark it as used, or None if it does not exist."""
    folder = cache / name
    if not folder.is_dir():
        return None
    os.utime(folder)
    return folder


@contextmanager
def new_entry(cache: Path, name: str) -> Iterator[Path]:
    """Yield a folder that becomes the entry `name` if the block succeeds.

    Other entries are then evicted until all together fit `MAX_CACHE_NBYTES`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=cache) as folder:
        partial = Path(folder) / name
        partial.mkdir()
        yield partial
        shutil.rmtree(cache / name, ignore_errors=True)
        with suppress(OSError):  # another process has added the entry
            partial.rename(cache / name)
    _evict_lru(cache, name)


def _evict_lru(cache: Path, new: str) -> None:
    sizes = {folder: folder_nbytes(folder) for folder in cache.iterdir() if folder.is_dir() and _is_evictable(folder)}
    for folder in sorted(sizes, key=lambda one: one.stat().st_mtime):
        if sum(sizes.values()) <= MAX_CACHE_NBYTES:
            break
        if folder.name != new:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]


def _is_evictable(folder: Path) -> bool:
    return not folder.name.startswith(".") or time.time() - folder.stat().st_mtime > STALE_SECONDS


def folder_nbytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
