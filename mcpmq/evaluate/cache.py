"""What was measured once and is kept: folders of a bounded size together; the longest unused is given up first."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

LIMIT_NBYTES = 8 << 30
ABANDONED_SECONDS = 24 * 3600  # after which an unfinished folder is one of a run that was killed


def recall(cache: Path, name: str) -> Path | None:
    """The folder of that name, marked as used now; None if there is none."""
    folder = cache / name
    if not folder.is_dir():
        return None
    os.utime(folder)
    return folder


@contextmanager
def remembering(cache: Path, name: str) -> Iterator[Path]:
    """A folder to write into that is kept under that name when the block ends well.

    Others are given up until all together fit `LIMIT_NBYTES`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=cache) as folder:
        partial = Path(folder) / name
        partial.mkdir()
        yield partial
        shutil.rmtree(cache / name, ignore_errors=True)
        with suppress(OSError):  # another process was faster
            partial.rename(cache / name)
    _give_up(cache, name)


def _give_up(cache: Path, kept: str) -> None:
    sizes = {folder: nbytes_of(folder) for folder in cache.iterdir() if folder.is_dir() and _finished(folder)}
    for folder in sorted(sizes, key=lambda one: one.stat().st_mtime):
        if sum(sizes.values()) <= LIMIT_NBYTES:
            break
        if folder.name != kept:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]


def _finished(folder: Path) -> bool:
    return not folder.name.startswith(".") or time.time() - folder.stat().st_mtime > ABANDONED_SECONDS


def nbytes_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
