"""Errors get the name of a weight once, and keep their hints in other processes."""

import pickle

import pytest

from mcpmq.errors import DatasetError, McpmqError, MissingExtra, prefix_errors


@pytest.mark.parametrize(("text", "expected"), [("broken", "`a`: broken"), ("`a` is broken", "`a` is broken")])
def test_a_prefix_is_added_unless_the_message_contains_it(text: str, expected: str) -> None:
    """The class and the hint stay the same."""
    with pytest.raises(DatasetError) as error, prefix_errors("`a`"):
        raise DatasetError(text, "a hint")

    assert str(error.value) == expected
    assert error.value.hint == "a hint"


@pytest.mark.parametrize("error", [DatasetError("sample `a` is broken", "repair it"), MissingExtra("ray", "ray")])
def test_an_error_of_another_process_is_the_same(error: McpmqError) -> None:
    """Class, message and hint are those of the process that raised it."""
    found = pickle.loads(pickle.dumps(error))

    assert (type(found), str(found), found.hint) == (type(error), str(error), error.hint)
