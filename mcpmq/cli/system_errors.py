"""Messages and hints for errors of the operating system that no reader or writer has converted."""

import errno

from mcpmq.errors import McpmqError

OUT_OF_MEMORY = McpmqError(
    "out of memory", "close other programs, use a computer with more memory, or reduce the limits of this process"
)
HINTS = {
    errno.ENOSPC: "free disk space, or set TMPDIR and HOME to folders on another disk",
    errno.EDQUOT: "free disk space of this user, or write to another disk",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or write to another disk",
    errno.EROFS: "write to another disk; this one is read-only",
    errno.EACCES: "change the permissions, or give another path",
    errno.EPERM: "change the permissions, or give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "replace the symbolic link, which refers to itself",
    errno.EIO: "check the disk, and copy the files to another one",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}
DEFAULT_HINT = "check that the path exists and can be read and written"


def system_error(error: OSError | MemoryError) -> McpmqError:
    """Return the error of the user for an error of the system; it keeps the traceback for `--verbose`."""
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY.with_traceback(error.__traceback__)
    path = "" if error.filename is None else f"`{error.filename}`: "
    found = McpmqError(f"{path}{error.strerror or error}", HINTS.get(error.errno or 0, DEFAULT_HINT))
    return found.with_traceback(error.__traceback__)
