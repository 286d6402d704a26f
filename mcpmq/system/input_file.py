"""Guard of files of unknown origin: regular files of bounded size, without links out of their folder."""

import stat
from collections.abc import Iterable
from pathlib import Path

from mcpmq.errors import McpmqError
from mcpmq.system.hub_cache import is_inside
from mcpmq.system.text_file import decode_text

COPY_HINT = "replace it by a copy of the file, or remove it"
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_files(
    folder: Path, patterns: Iterable[str], error_type: type[McpmqError], max_nbytes: int | None = None
) -> None:
    """Check all files of a folder that match one of the patterns.

    Raises:
        McpmqError: of `error_type`: see `check_file`.
    """
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        check_file(file, folder, error_type, max_nbytes)


def check_file(file: Path, folder: Path, error_type: type[McpmqError], max_nbytes: int | None = None) -> None:
    """Check that a file is a regular file of a folder; links into the `blobs` of the same hub cache are part of it.

    Raises:
        McpmqError: of `error_type`: the file is missing, is not a regular file, is a link out of the folder, or is
            larger than `max_nbytes`.
    """
    try:
        inside, status = is_inside(file, folder), file.stat()
    except (OSError, ValueError, RuntimeError) as error:  # of links in a circle, and of names with a null
        raise error_type(f"`{file}` cannot be read: {_reason(error)}", COPY_HINT) from error
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "another kind of file")
        raise error_type(f"`{file}` is not a regular file but {kind}", COPY_HINT)
    if not inside:
        raise error_type(f"`{file}` is outside of the folder, or a link out of it: `{file.resolve()}`", COPY_HINT)
    if max_nbytes is not None and status.st_size > max_nbytes:
        raise error_type(f"`{file}` has {status.st_size:,} bytes, more than {max_nbytes:,}", "remove it")


def read_text_file(file: Path, error_type: type[McpmqError], hint: str, max_nbytes: int) -> str:
    """Return the text of a regular file that a user names; links are followed, a byte order mark is removed.

    Raises:
        McpmqError: of `error_type`, with the hint: the file cannot be read, is not a regular file, is larger than
            `max_nbytes`, or is not Unicode text.
    """
    try:
        target = file.resolve(strict=True)
        check_file(target, target.parent, error_type, max_nbytes)
        return decode_text(target.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:  # also of the encoding, and of a path with a null
        raise error_type(f"`{file}` cannot be read: {_reason(error)}", hint) from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
