"""Compilation of kernels by numba, with compiled code in the cache folder of the user.

Kernels process `LANES` rows at a time: arrays are [columns, lanes], and the innermost loop runs over the lanes. So the
vector units of the processor compute different rows, and every sum adds the columns of one row in order. Without fast
math nothing is reordered or fused: the results are those of IEEE float32 on every processor and for any number of rows.
"""

import fcntl
import hashlib
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import McpmqWarning

LANES = 64
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
F = np.float32
NUMBA: Any = numba.config  # settings that are read when a function is decorated
TINY = F(1e-30)  # steps of smaller magnitude are zero

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def warn_once() -> None:
    """Warn that compiled code is not cached: the user waits for the compiler in every command."""
    text = (
        "compiled kernels are not cached, and every command compiles them again, for 10 to 20 seconds: the cache folder"
        " cannot be written; set the variable XDG_CACHE_HOME to a folder that can be written"
    )
    warnings.warn(text, McpmqWarning, stacklevel=2)


def _cache_folder() -> Path | None:
    """Return the folder for the compiled code of these sources; None, with a warning, if it cannot be written.

    numba compares the file of a function only, and not the files of the functions that it calls; hence the hash.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        parent = NUMBA.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(parent) / "mcpmq-kernels" / digest.hexdigest()[:16]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # also without a home folder
        warn_once()
        return None
    if os.access(folder, os.W_OK):
        remove_partial_files(folder)
        return folder
    warn_once()
    return None


def remove_partial_files(folder: Path) -> int | None:
    """Remove the temporary files of killed processes from the cache folder and return the descriptor of a shared lock.

    Every process that can write there holds the lock until it ends, so a temporary file is in use only while the lock
    of another process exists.
    """
    descriptor = None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.rglob("*.tmp.*"):
                path.unlink(missing_ok=True)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


CACHE_FOLDER = _cache_folder()


def kernel(function: Function) -> Function:
    """Compile a function that releases the interpreter lock, at its first call."""
    try:
        return _compile(function, CACHE_FOLDER)
    except RuntimeError:  # numba cannot write to the folder
        warn_once()
        return _compile(function, None)


def _compile(function: Function, folder: Path | None) -> Function:
    before, NUMBA.CACHE_DIR = NUMBA.CACHE_DIR, str(folder or "")
    try:
        compiled = numba.njit(nogil=True, error_model="numpy", cache=folder is not None)(function)
    finally:
        NUMBA.CACHE_DIR = before
    if folder and not NUMBA.DISABLE_JIT:
        _ignore_errors(cast(Any, compiled)._cache)
    return cast(Function, compiled)


def _ignore_errors(cache: Any) -> None:
    """Compile again where a cached file is damaged, and go on where the disk is full or read-only."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:  # unpickling damaged bytes raises any exception
            with suppress(OSError):
                cache.flush()
            return None

    def save_overload(*arguments: Any) -> None:
        try:
            save(*arguments)
        except OSError:
            warn_once()

    cache.load_overload, cache.save_overload = load_overload, save_overload
