"""Parsing of sizes."""

import pytest

from mcpmq.errors import McpmqError
from mcpmq.system.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4.6GB", 4_600_000_000), ("512 MiB", 536_870_912), ("1000", 1000), ("1.5gib", 1_610_612_736), ("2 kB", 2000)],
)
def test_a_number_and_a_unit_are_a_size(text: str, nbytes: int) -> None:
    """Decimal units are powers of 1000, binary units powers of 1024, and case does not matter."""
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 parsec", "0", "0.0GB", "1e9", "4,6GB", "1.5.5GB", "10 GB more"])
def test_other_text_is_an_error(text: str) -> None:
    """The hint lists the units."""
    with pytest.raises(McpmqError, match="is not a size") as caught:
        parse_size(text)

    assert "GiB" in caught.value.hint
