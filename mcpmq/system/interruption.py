"""Interruption by Ctrl-C, SIGTERM or SIGHUP: release resources and end within seconds with exit code 128 + signal.

The signal raises `Interrupted` in the main thread, so that context managers release their resources. If the main thread
does not end in time, for example because it is in a long library call or an import swallowed the exception, a second
thread runs the registered cleanups and ends the process.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import RLock, Thread, current_thread, main_thread
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 1.0  # for context managers, before the second thread ends the process
HINT = "run the same command again to resume; finished steps are not repeated"
SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # the progress display hides it

_suspended: set[int] = set()  # signals that do not end the process
_received: list[int] = []  # the first signal
_cleanups: list[Callable[[], None]] = []
_ending = RLock()


class Interrupted(BaseException):
    """A signal ends the process; not an `Exception`, so that no error handler catches it."""


def exit_on_signals() -> None:
    """Replace the handlers of Ctrl-C, SIGTERM and SIGHUP, except of signals that the parent process ignores."""
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, _interrupt)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    Thread(target=_end_after_signal, args=(read, handled), daemon=True, name="interruption").start()


def run_until_signal(command: Callable[[], None]) -> None:
    """Run a command; after a signal end the process, also if the command returned or raised another error.

    After the command, signals are ignored: the result is complete, and the interpreter may take a second to exit.
    """
    try:
        command()
    finally:
        if _received:
            _end(_received[0])
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def cleanup_on_exit(cleanup: Callable[[], None]) -> Iterator[None]:
    """Run `cleanup` if a signal ends the process inside of the block before the block is left."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


@contextmanager
def call_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` for every signal inside of the block, which ends by itself; for servers, whose end is not an error.

    Threads other than the main one receive no signals; for them this has no effect.
    """
    if current_thread() is not main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in handlers.items() if handler != signal.SIG_IGN]
    wakeup = signal.set_wakeup_fd(-1)
    for number in handled:
        signal.signal(number, lambda *_: stop())
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, handlers[number])
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C inside of the block, instead of ending the process."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    _suspended.add(signal.SIGINT)
    try:
        yield
    finally:
        _suspended.discard(signal.SIGINT)
        signal.signal(signal.SIGINT, earlier)


def _interrupt(number: int, _: FrameType | None) -> None:
    if _received:
        return
    _received.append(number)
    sys.unraisablehook = lambda _: None  # the exception may be raised in a destructor or a callback
    raise Interrupted


def _end_after_signal(read: int, handled: list[signal.Signals]) -> None:
    while True:
        number = os.read(read, 1)[0]
        if number in handled and number not in _suspended:
            time.sleep(GRACE_SECONDS)
            _end(number)


def _end(number: int) -> NoReturn:
    """Run the remaining cleanups, the newest first, and end the process without the exit handlers of libraries."""
    _ending.acquire()  # for ever: one thread ends the process
    for cleanup in reversed(_cleanups):
        with suppress(Exception):
            cleanup()
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    with suppress(OSError):
        reset = SHOW_CURSOR if os.isatty(2) else ""
        os.write(2, f"{reset}error: interrupted by {name}\n\nhint: {HINT}\n".encode())
    os._exit(128 + number)
