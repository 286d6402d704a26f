"""Errors get the name of a weight once."""

import pytest

from mcpmq.errors import DatasetError, prefix_errors


@pytest.mark.parametrize(("text", "expected"), [("broken", "`a`: broken"), ("`a` is broken", "`a` is broken")])
def test_a_prefix_is_added_unless_the_message_contains_it(text: str, expected: str) -> None:
    """The class and the hint stay the same."""
    with pytest.raises(DatasetError) as error, prefix_errors("`a`"):
        raise DatasetError(text, "a hint")

    assert str(error.value) == expected
    assert error.value.hint == "a hint"
