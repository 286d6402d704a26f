"""Schemes: parsing, formatting, code ranges and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.errors import RecipeError
from mcpmq.scheme import GGML_BLOCKS, GROUP_SIZES, GgmlScheme, IntegerScheme, SchemeChoice, parse_request, parse_scheme

INTEGER = st.builds(IntegerScheme, st.sampled_from([4, 8]), st.sampled_from([None, *GROUP_SIZES]), st.booleans())


@given(INTEGER)
def test_integer_schemes_are_parsed_from_their_text(scheme: IntegerScheme) -> None:
    """`parse_scheme(str(scheme))` is the scheme."""
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize("name", [*GGML_BLOCKS, "nf4", "fp4", "f32", "f16", "bf16"])
def test_named_schemes_are_parsed_from_their_text(name: str) -> None:
    """Block types, codebooks and float types have their names as text."""
    assert str(parse_scheme(name)) == name


def test_keep_is_parsed_as_none() -> None:
    """`keep` keeps the dtype of a weight."""
    assert parse_scheme("keep") is None


@pytest.mark.parametrize(("columns", "chosen"), [(768, "q4_k"), (576, "iq4_nl"), (100, "iq4_nl")])
def test_a_choice_gives_the_first_scheme_whose_blocks_divide_the_columns(columns: int, chosen: str) -> None:
    """768 is a multiple of 256; without a scheme that fits it is the last one."""
    choice = parse_request("q4_k or iq4_nl")

    assert choice == SchemeChoice((GgmlScheme("q4_k"), GgmlScheme("iq4_nl")))
    assert str(choice) == "q4_k or iq4_nl"
    assert str(choice.for_columns(columns)) == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iq4_nl or q4_k", "`iq4_nl or q4_k` never gives `q4_k`: `iq4_nl` fits every multiple of 32 columns"),
        ("q4_k or int4-g32 or int4-g16", "never gives `int4-g16`"),
        ("q4_k or keep", "has `keep` among its schemes"),
        ("q4_k or q3", "`q3` is not a scheme"),
    ],
)
def test_a_choice_with_a_useless_scheme_is_an_error(text: str, message: str) -> None:
    """Every scheme of a choice must be possible; `keep` cannot be one of them."""
    with pytest.raises(RecipeError, match=message):
        parse_request(text)


@pytest.mark.parametrize("text", ["int4", "int5-g32", "int4-g31", "int4-g0", "q4_K", "int4-g32-sym", "", "int4-gx"])
def test_an_unknown_scheme_is_an_error_with_alternatives(text: str) -> None:
    """The error has the text, and the hint lists the schemes."""
    with pytest.raises(RecipeError, match=f"`{text}` is not a scheme") as caught:
        parse_scheme(text)

    for alternative in ("int4", "int8", "-g", "256", "-asym", "q4_k", "nf4", "f16", "keep"):
        assert alternative in caught.value.hint


@pytest.mark.parametrize(
    ("text", "qmin", "qmax", "divisor"),
    [
        ("int4-g32", 0, 15, -8),
        ("int4-row-asym", 0, 15, 15),
        ("int8-row", 1, 255, 127),
        ("int8-g64-asym", 0, 255, 255),
    ],
)
def test_code_ranges_are_those_of_the_bit_width(text: str, qmin: int, qmax: int, divisor: int) -> None:
    """Symmetric 4 bits use all codes with a signed scale; symmetric 8 bits omit the lowest code."""
    scheme = parse_scheme(text)

    assert isinstance(scheme, IntegerScheme)
    assert (scheme.qmin, scheme.qmax, scheme.scale_divisor) == (qmin, qmax, divisor)
    assert scheme.zero_point == {15: 8, 255: 128}[qmax]


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("int4-g32", 64, 32 + 2 * 2),
        ("int4-g32", 33, 17 + 2 * 2),
        ("int4-g32-asym", 64, 32 + 2 * 2 + 1),
        ("int8-row", 100, 100 + 2),
        ("q4_k", 512, 288),
        ("iq4_xs", 512, 272),
        ("iq3_s", 512, 220),
        ("q3_k", 512, 220),
        ("q2_k", 512, 168),
        ("q8_0", 33, 68),
        ("nf4", 192, 96 + 3),
        ("f16", 7, 14),
    ],
)
def test_a_row_has_the_bytes_of_its_codes_scales_and_zero_points(text: str, columns: int, expected: int) -> None:
    """A partial group counts as a whole one."""
    scheme = parse_scheme(text)

    assert scheme is not None
    assert scheme.row_nbytes(columns) == expected


@pytest.mark.parametrize(
    ("text", "columns", "group_columns", "padded"),
    [("int4-g32", 70, 32, 70), ("int8-row", 70, 70, 70), ("q8_0", 70, 32, 96), ("q4_k", 70, 256, 256)],
)
def test_groups_and_padding_follow_from_the_columns(text: str, columns: int, group_columns: int, padded: int) -> None:
    """Integer codes are not padded; blocks of ggml are."""
    scheme = parse_scheme(text)

    assert scheme is not None
    assert not hasattr(scheme, "dtype")
    assert (scheme.group_columns(columns), scheme.padded_columns(columns)) == (group_columns, padded)  # type: ignore[union-attr]
