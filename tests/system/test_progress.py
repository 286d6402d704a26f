"""Progress without display."""

from mcpmq.system.progress import silent


def test_silent_progress_yields_the_items_in_order() -> None:
    """Same items, same order."""
    assert list(silent([3, 1, 2], "counting")) == [3, 1, 2]
