"""Items that a thread computes in advance."""

from collections.abc import Iterator
from threading import get_ident

import pytest

from mcpmq.system.read_ahead import read_ahead


def test_items_come_in_order_from_another_thread() -> None:
    """Also `None` is an item, and no item is one."""
    threads = set()

    def items() -> Iterator[int | None]:
        for item in (3, None, 1):
            threads.add(get_ident())
            yield item

    assert list(read_ahead(items())) == [3, None, 1]
    assert list(read_ahead(())) == []
    assert get_ident() not in threads


def test_an_error_is_raised_after_the_items_before_it() -> None:
    """The consumer gets the items before the error."""

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    found = read_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)
