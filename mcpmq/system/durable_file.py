"""Files and folders that are complete on disk before they get their names."""

import errno
import os
from pathlib import Path


def write_durably(file: Path, content: str | bytes) -> None:
    """Replace a file atomically: after a crash or a power failure it has the old content or the new.

    The content is written to a new file beside it, synced and renamed. Symbolic links are replaced, not followed.
    """
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with partial.open("xb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        move_durably(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def move_durably(partial: Path, file: Path) -> None:
    """Sync a file, rename it, and sync the folder that has the new name."""
    _sync(partial)
    partial.replace(file)
    sync_folder(file.parent)


def sync_tree(folder: Path) -> None:
    """Sync all files of a folder, then its subfolders and the folder itself."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
