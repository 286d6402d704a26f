"""Silence yields what it is given."""

from mcpmq.system.progress import silent


def test_silence_passes_the_items_on() -> None:
    """Same items, same order."""
    assert list(silent([3, 1, 2], "counting")) == [3, 1, 2]
