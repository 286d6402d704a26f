"""Less time at the start and the end of a command: fewer garbage collections, and modules are not destroyed."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000  # between collections: with Python's 700, importing torch takes a third longer
FLUSH_FAILED = 120  # exit code of Python if standard output cannot be written at the end


def collect_garbage_rarely() -> None:
    """Collect cyclic garbage after many new objects; tensors are freed at once, when their last reference is gone.

    Not for processes whose peak memory is measured: garbage is a part of it.
    """
    gc.set_threshold(NEW_OBJECTS)


@contextmanager
def exit_without_teardown() -> Iterator[None]:
    """End the process after the exit handlers that modules register inside the block, with its exit code.

    The interpreter would free every object of every module, which takes most of a second after an import of torch.
    """
    status = [1]  # of an exception, which the interpreter prints
    atexit.register(_end, status)
    try:
        yield
        status[0] = 0
    except SystemExit as stop:
        status[0] = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
        raise


def _end(status: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # closed by the reader or by this process
            status[0] = status[0] or FLUSH_FAILED
    os._exit(status[0] & 0xFF)
