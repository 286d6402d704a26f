"""Values that are computed in a thread."""

import threading

import pytest

from mcpmq.system.background import begin


def test_the_value_is_computed_once_in_another_thread() -> None:
    """Waiting twice returns the same value."""
    threads = []

    def work() -> str:
        threads.append(threading.current_thread())
        return "value"

    wait = begin(work)

    assert (wait(), wait()) == ("value", "value")
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    assert threads[0].daemon


def test_the_error_is_raised_where_the_value_is_needed() -> None:
    """An error in the thread is that of the caller."""
    wait = begin(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        wait()
