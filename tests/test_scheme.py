"""Schemes: parsing, formatting and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.errors import RecipeError
from mcpmq.scheme import GGML_BLOCKS, GROUP_SIZES, IntegerScheme, parse_scheme

INTEGER = st.builds(IntegerScheme, st.sampled_from([4, 8]), st.sampled_from([None, *GROUP_SIZES]), st.booleans())


@given(INTEGER)
def test_integer_schemes_are_read_as_they_are_written(scheme: IntegerScheme) -> None:
    """parse(str(scheme)) is the scheme."""
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize("name", [*GGML_BLOCKS, "f32", "f16", "bf16"])
def test_named_schemes_are_read_as_they_are_written(name: str) -> None:
    """A ggml type or a float type keeps its name."""
    assert str(parse_scheme(name)) == name


def test_keep_is_no_scheme() -> None:
    """`keep` leaves a weight as it is."""
    assert parse_scheme("keep") is None


@pytest.mark.parametrize("text", ["int4", "int5-g32", "int4-g31", "int4-g0", "q4_K", "int4-g32-sym", "", "int4-gx"])
def test_what_is_no_scheme_is_refused_with_the_alternatives(text: str) -> None:
    """The error quotes the text and the hint lists what could be written."""
    with pytest.raises(RecipeError, match="is not a scheme") as caught:
        parse_scheme(text)

    assert "q4_k" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("int4-g32", 64, 32 + 2 * 2),
        ("int4-g32", 33, 17 + 2 * 2),
        ("int4-g32-asym", 64, 32 + 2 * 2 + 1),
        ("int8-row", 100, 100 + 2),
        ("q4_k", 512, 288),
        ("q8_0", 33, 68),
        ("f16", 7, 14),
    ],
)
def test_bytes_of_a_row(text: str, columns: int, expected: int) -> None:
    """Codes, scales and zero points are all counted, ragged groups as whole ones."""
    scheme = parse_scheme(text)

    assert scheme is not None
    assert scheme.row_nbytes(columns) == expected
