"""Outputs: checks of their paths, one writer at a time, folders that are renamed when they are complete."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

from mcpmq.errors import OutputError
from mcpmq.system.durable_file import sync_folder, sync_tree
from mcpmq.system.file_lock import LockHeldError, exclusive_lock
from mcpmq.system.interruption import cleanup_on_exit

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, None)  # None: numpy raises an OSError without a number
FREE_SPACE, OTHER_FOLDER = "free disk space", "give another folder"
WAIT_HINT = "wait until that process ends, or give another output"
FOLDER_LOCK = ".mcpmq.lock"
NO_INPUTS: Mapping[Path, str] = MappingProxyType({})


@contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Convert errors of the file system to an OutputError that names the output."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in a path is a ValueError, a loop a RuntimeError
        raise output_error(out, error) from error


def output_error(out: Path, error: Exception) -> OutputError:
    """Return the error of an output that could not be written."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        free = shutil.disk_usage(_existing_parent(out)).free
        return OutputError(f"the disk is full ({free:,} bytes free) while writing `{out}`", FREE_SPACE)
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return OutputError(f"a file of `{out}` is too large for the disk or for the limit of this user", OTHER_FOLDER)
    reason = error.strerror if isinstance(error, OSError) else error
    return OutputError(f"`{out!s}` cannot be written: {reason}".replace("\0", "\\0"), OTHER_FOLDER)


def check_outside(out: Path, inputs: Mapping[Path, str]) -> None:
    """Check that an output is not an input and not inside of one; inputs have a description each.

    Raises:
        OutputError: it is.
    """
    check_distinct(out, inputs)
    with output_errors(out):
        for parent in _located(out).resolve().parents:
            for folder, name in inputs.items():
                if folder.exists() and parent.exists() and parent.samefile(folder):
                    raise OutputError(f"`{out}` is inside the {name} `{folder}`", "give an output outside of it")


def check_distinct(out: Path, inputs: Mapping[Path, str]) -> None:
    """Check that an output is not an input.

    Raises:
        OutputError: it is.
    """
    with output_errors(out):
        resolved = _located(out).resolve()
        for folder, name in inputs.items():
            if folder.exists() and resolved.exists() and resolved.samefile(folder):
                raise OutputError(f"`{out}` is the {name} `{folder}`", "give an output outside of it")


def check_folder(out: Path, inputs: Mapping[Path, str] = NO_INPUTS) -> bool:
    """Check that an output is missing or a folder, and not an input; return whether it exists.

    A folder inside of an input is valid, because the files of inputs are read by their names.

    Raises:
        OutputError: it is a link, a file or an input, or its path is not valid.
    """
    check_distinct(out, inputs)
    with output_errors(out):
        located = _located(out)
        _mode(beside(out, "partial"))  # raises if the name is too long
        mode = _mode(located)
    if mode is None:
        return False
    if stat.S_ISLNK(mode):
        raise OutputError(f"`{out}` is a symbolic link to `{located.readlink()}`", "give the path of the folder")
    if not stat.S_ISDIR(mode):
        raise OutputError(f"`{out}` exists and is not a folder", "give another folder, or delete this file")
    return True


def check_output(out: Path, inputs: Mapping[Path, str] = NO_INPUTS) -> None:
    """Check that a folder can be created at `out`: missing or empty, not a mount point, not an input.

    The lock file that a killed run left beside a complete output is removed.

    Raises:
        OutputError: it cannot.
    """
    if not check_folder(out, inputs):
        return
    with output_errors(out):
        is_empty, is_mount = not any(out.iterdir()), os.path.ismount(out)
    if not is_empty:
        remove_stale_lock(out)
        raise OutputError(f"`{out}` exists and is not empty", "give another folder, or delete this one")
    if is_mount:
        raise OutputError(f"`{out}` is a mount point and cannot be replaced", f"give a folder in it: `{out / 'out'}`")


def check_file(out: Path, inputs: Mapping[Path, str], beginning: str) -> None:
    """Check that a file can be written: missing, empty, or with this beginning, and outside of all inputs.

    Raises:
        OutputError: it cannot.
    """
    check_outside(out, inputs)
    with output_errors(out):
        mode = _mode(out)
        if mode is not None and not stat.S_ISREG(mode):
            raise OutputError(f"`{out}` exists and is not a regular file", "give another file")
        with out.open("rb") if mode is not None else nullcontext(BytesIO()) as stream:
            content = stream.read(len(beginning.encode()))
    if content not in (b"", beginning.encode()):
        raise OutputError(f"`{out}` exists and was not written by this command", "give another file, or delete it")


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Hold the lock of an output, the file `.NAME.lock` beside it; missing parent folders are created.

    Raises:
        OutputError: another process writes the output, or the parent folder cannot be written.
    """
    with output_errors(out):
        _located(out).parent.mkdir(parents=True, exist_ok=True)
    with _locked(out, beside(out, "lock")):
        yield


def remove_stale_lock(out: Path) -> None:
    """Remove the lock file that a killed run left beside a complete output; a lock that is held stays."""
    lock = beside(out, "lock")
    with suppress(OSError, LockHeldError):
        lock.lstat()
        with exclusive_lock(lock):
            pass


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that gets several outputs, the file `.mcpmq.lock` in it.

    A missing folder is created, and removed again if it is empty in the end.

    Raises:
        OutputError: another process writes into the folder, or it cannot be written.
    """
    with output_errors(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder, folder / FOLDER_LOCK):
            yield
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def _locked(out: Path, lock: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            with output_errors(out):
                stack.enter_context(exclusive_lock(lock))
        except LockHeldError as error:
            raise OutputError(f"`{out}` is being written by {error}", WAIT_HINT) from None
        yield


@contextmanager
def atomic_dir(out: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` if the block succeeds, and removed if it fails.

    With `resumable` an unfinished folder is kept, and yielded again by the next call. The caller holds the lock of the
    output. A temporary folder that is a symbolic link is not followed.

    Raises:
        OutputError: `out` exists and is not empty, it cannot be created, or the disk is full.
    """
    check_output(out)
    partial = beside(out, "partial")
    with output_errors(out):
        _create(partial, keep=resumable)
    with nullcontext() if resumable else _removed_at_exit(partial):
        try:
            yield partial
            with output_errors(out):
                sync_tree(partial)
                partial.replace(_located(out))
                sync_folder(partial.parent)
        except OSError as error:
            if _is_about(partial, error):
                raise output_error(out, error) from error
            raise


@contextmanager
def _removed_at_exit(folder: Path) -> Iterator[None]:
    """Remove a folder at the end of the block, or if a signal ends the process."""

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    try:
        with cleanup_on_exit(remove):
            yield
    finally:
        remove()


def _create(partial: Path, *, keep: bool) -> None:
    mode = _mode(partial)
    if mode is not None and not stat.S_ISDIR(mode):
        raise OutputError(f"`{partial}` is not the folder of an unfinished run", "delete it")
    if mode is not None and not keep:
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=keep)


def _is_about(partial: Path, error: OSError) -> bool:
    """Return whether an error is about a file in the temporary folder, or about the disk."""
    if error.errno in (*DISK_FULL, errno.EFBIG):
        return True
    return isinstance(error.filename, str) and Path(error.filename).is_relative_to(partial)


def check_disk_space(out: Path, needed_nbytes: int) -> None:
    """Check that the disk of `out` has enough free space, without the files of an unfinished run.

    Raises:
        OutputError: the free space is less than `needed_nbytes`.
    """
    free = shutil.disk_usage(_existing_parent(out)).free
    if free + _nbytes(beside(out, "partial")) < needed_nbytes:
        raise OutputError(
            f"`{out}` needs {needed_nbytes:,} bytes, the disk has {free:,} free", f"{FREE_SPACE}, or use another disk"
        )


def _nbytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*")) if folder.is_dir() else 0


def beside(out: Path, suffix: str) -> Path:
    """Return the path of a hidden file or folder beside an output: `.NAME.suffix`."""
    located = _located(out)
    return located.with_name(f".{located.name}.{suffix}")


def _located(out: Path) -> Path:
    """Return an absolute path whose last part is a name; `.` and `..` are resolved, and other links are kept."""
    return out.resolve() if out.name in ("", "..") else out.absolute()


def _mode(path: Path) -> int | None:
    """Return the type and permissions of a path that exists; a link is not followed."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None


def _existing_parent(out: Path) -> Path:
    return next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
