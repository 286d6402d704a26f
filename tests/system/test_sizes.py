"""Sizes as people write them."""

import pytest

from mcpmq.errors import McpmqError
from mcpmq.system.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4.6GB", 4_600_000_000), ("512 MiB", 512 << 20), ("1000", 1000), ("1.5gib", 3 << 29), ("2 kB", 2000)],
)
def test_a_number_and_a_unit_are_bytes(text: str, nbytes: int) -> None:
    """Powers of ten, and of two where the unit says so."""
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 parsec", "0", "1e9", "4,6GB"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    """With the units that there are."""
    with pytest.raises(McpmqError, match="is no size") as caught:
        parse_size(text)

    assert "GiB" in caught.value.hint
