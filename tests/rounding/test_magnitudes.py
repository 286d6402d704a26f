"""Weights of every magnitude are rounded on every scheme within its error, or rejected with their name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcpmq.errors import ScaleError
from mcpmq.grids import codebook, dequantize, quantize
from mcpmq.grids.limits import scale_limits
from mcpmq.rounding.magnitudes import GroupMagnitudes, check_double_quant
from mcpmq.scheme import CodebookScheme, FloatScheme, Scheme, parse_scheme
from tests.rounding.oracle import SCHEMES, VECTOR_SCHEMES

ROWS, COLUMNS = 6, 512
ALL_SCHEMES = (*SCHEMES, *VECTOR_SCHEMES, "int8-g16-asym", "nf4", "fp4", "f16")
# Largest error over the largest magnitude of the group: a step, because 4-bit codes are not symmetric.
MAX_ERROR = {"int4": 0.14, "int8": 0.009, "f16": 0.004, "q8_0": 0.005, "q4_0": 0.13, "q4_1": 0.1, "q5_0": 0.07}
MAX_ERROR |= {
    "iq4_nl": 0.13,
    "q4_k": 0.15,
    "q5_k": 0.08,
    "q6_k": 0.05,
    "iq4_xs": 0.15,
    "iq3_s": 0.3,
    "q2_k": 0.6,
    "q3_k": 0.3,
    "nf4": 0.17,
    "fp4": 0.19,
}
WEIGHTS = st.tuples(st.integers(-140, 120), st.sampled_from(["random", "constant", "negative", "outlier", "zero rows"]))


def _weight(exponent: int, kind: str, seed: int = 0) -> Tensor:
    """Return a bfloat16 weight around 2^exponent."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind in ("constant", "negative"):
        weight = torch.full_like(weight, 1 if kind == "constant" else -1)
    if kind == "zero rows":
        weight[1::2] = 0
    weight *= 2.0**exponent
    if kind == "outlier":
        weight[2, 300] = 2.0 ** min(exponent + 40, 126)
    return weight.bfloat16()


def _parse(text: str) -> Scheme:
    scheme = parse_scheme(text)
    assert scheme is not None
    return scheme


def _round(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Tensor:
    """Round a weight if its magnitudes are represented.

    Raises:
        ScaleError: they are not.
    """
    magnitudes = GroupMagnitudes.create("a.weight", scheme, weight.shape[1])
    assert magnitudes is not None
    magnitudes.add(weight)
    magnitudes.check_largest()
    magnitudes.deviation()
    if isinstance(scheme, CodebookScheme):
        exact = codebook.round_to_nearest([weight], len(weight), scheme)
        stored = codebook.double_quantize(exact)
        check_double_quant("a.weight", exact.scale, stored.scale)
        return dequantize(stored)
    if isinstance(scheme, FloatScheme):
        return weight.half().float()
    return dequantize(quantize(weight, scheme, importance))


def _round_or_fail(weight: Tensor, scheme: Scheme, importance: Tensor | None) -> tuple[Tensor, ScaleError | None]:
    try:
        return _round(weight, scheme, importance), None
    except ScaleError as error:
        return weight, error


def _group_maxima(values: Tensor, scheme: Scheme) -> Tensor:
    magnitudes = GroupMagnitudes.create("a.weight", scheme, values.shape[1])
    assert magnitudes is not None
    return magnitudes.limits.group_magnitudes(values)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL_SCHEMES), WEIGHTS, st.booleans())
def test_every_weight_is_rounded_within_the_error_of_its_scheme_or_rejected(
    text: str, drawn: tuple[int, str], weighted: bool
) -> None:
    """Magnitudes from 2^-140, subnormal in bfloat16, to 2^120; groups of zeros stay zeros; errors name the weight.

    A group that is accepted although its scale is inexact is small beside the typical group.
    """
    scheme, weight = _parse(text), _weight(*drawn)
    importance = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1)) if weighted else None
    rounded, raised = _round_or_fail(weight, scheme, importance)
    if raised:
        assert "`a.weight`" in str(raised)
        assert '`"a.weight" = "keep"`' in raised.hint
        return
    assert rounded.isfinite().all()
    magnitude, error = _group_maxima(weight, scheme), _group_maxima(rounded - weight.float(), scheme)
    typical = magnitude[magnitude > 0].median() if magnitude.any() else torch.zeros(())
    scale_error = 1 / 8 if isinstance(scheme, CodebookScheme) else 1 / 16  # double quantization has a larger one
    # A code of iq3_s is of four columns: one of little importance follows the others.
    factor = (3 if text == "iq3_s" else 2) if weighted else 1
    allowed = MAX_ERROR[text.partition("-")[0]] * factor + scale_error
    assert (error[magnitude == 0] == 0).all()
    assert (error <= allowed * magnitude.maximum(typical)).all()


@pytest.mark.parametrize("text", ALL_SCHEMES)
@pytest.mark.parametrize("exponent", [-5, 0, 10])
def test_ordinary_weights_have_no_deviation(text: str, exponent: int) -> None:
    """Around 0.03, 1 and 1,000 all scales are exact, and the error is at most a step."""
    scheme, weight = _parse(text), _weight(exponent, "random")
    magnitudes = GroupMagnitudes.create("a.weight", scheme, COLUMNS)
    assert magnitudes is not None
    magnitudes.add(weight)

    error = _group_maxima(_round(weight, scheme) - weight.float(), scheme)

    assert magnitudes.deviation() is None
    assert not magnitudes.are_limited
    assert (error <= MAX_ERROR[text.partition("-")[0]] * _group_maxima(weight, scheme)).all()


@pytest.mark.parametrize(
    ("text", "accepted", "rejected"),
    [("int4-g32", -18, -21), ("int8-g32", -13, -16), ("int4-g32-asym", -17, -20), ("q8_0", -13, -16),
     ("q4_0", -18, -21), ("q4_1", -17, -20), ("q5_0", -16, -19), ("iq4_nl", -14, -17), ("q4_k", -11, -14),
     ("q5_k", -10, -13), ("q6_k", -9, -12), ("iq4_xs", -9, -12), ("iq3_s", -12, -16), ("q2_k", -17, -20),
     ("q3_k", -15, -18), ("nf4", -125, -129), ("f16", -19, -24)],
)  # fmt: skip
def test_small_weights_are_rejected_before_scales_become_zero(text: str, accepted: int, rejected: int) -> None:
    """fp16 has values down to 2^-24; the scales of large blocks are 6 or 8 bits times an fp16: a higher limit."""
    _round(_weight(accepted, "random"), _parse(text))

    with pytest.raises(ScaleError, match="`a.weight` has a typical magnitude of"):
        _round(_weight(rejected, "random"), _parse(text))


@pytest.mark.parametrize(
    ("text", "largest"),
    [("int4-g32", 5.2e5), ("int4-g32-asym", 4.8e5), ("int8-row", 8.2e6), ("q8_0", 2.6e5), ("q4_1", 65000),
     ("f16", 65000), ("q6_k", 2.6e5)],
)  # fmt: skip
def test_large_values_are_rejected_before_scales_become_infinite(text: str, largest: float) -> None:
    """The limit is a multiple of the largest fp16, 65,504, or that of ggml's search."""
    weight = torch.full((2, 256), 1.0)
    weight[1, 7] = largest
    assert _round(weight, _parse(text)).isfinite().all()

    weight[1, 7] = 1.02 * largest
    with pytest.raises(ScaleError, match="`a.weight` has a value of .*, too large for"):
        _round(weight, _parse(text))


@pytest.mark.parametrize("text", ["int4-g32", "int8-g32", "q4_k", "q6_k", "nf4"])
def test_small_groups_in_an_ordinary_weight_are_a_deviation(text: str) -> None:
    """Rows of unused tokens at 2^-130 do not stop a run; the note has their number, and they are nearly zero."""
    scheme, weight = _parse(text), _weight(-4, "random")
    weight[4:] *= 2.0**-126
    magnitudes = GroupMagnitudes.create("a.weight", scheme, COLUMNS)
    assert magnitudes is not None
    magnitudes.add(weight[:5])
    magnitudes.add(weight[5:])

    small, groups = 2 * COLUMNS // magnitudes.limits.group_columns, 6 * COLUMNS // magnitudes.limits.group_columns

    assert magnitudes.are_limited
    assert (magnitudes.deviation() or "").startswith(f"{small} of {groups} groups are too small for scales of `{text}`")
    assert (_round(weight, scheme)[4:].abs() < 5e-4).all()


def test_inexact_scales_are_a_deviation_before_they_are_an_error() -> None:
    """At 2^-12 the scales of 8-bit codes have an error of up to 2 %, and the note has the number."""
    magnitudes = GroupMagnitudes.create("a.weight", _parse("int8-g32"), COLUMNS)
    assert magnitudes is not None
    magnitudes.add(_weight(-12, "random"))

    assert magnitudes.typical == pytest.approx(2.2 * 2**-12, rel=0.1)
    assert magnitudes.deviation() == "small scales of `int8-g32` are inexact: error up to 0.7%"


def test_one_huge_scale_is_too_large_for_double_quantization() -> None:
    """Scales are stored in steps of the largest one around their mean: 10^7 beside 1 loses the others."""
    scale = torch.rand(64, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    assert check_double_quant("a.weight", scale, _stored(scale)) is None
    scale[3, 7] = 200
    note = check_double_quant("a.weight", scale, _stored(scale))
    scale[3, 7] = 1e7

    with pytest.raises(ScaleError, match="`a.weight` has scales from 0.5 to 1e.07, which double quantization"):
        check_double_quant("a.weight", scale, _stored(scale))
    assert note is None or note.startswith("double quantization changes the scale of")
    assert check_double_quant("a.weight", torch.zeros(3, 4), torch.zeros(3, 4)) is None


def _stored(scale: Tensor) -> Tensor:
    return codebook.dequantize_scale(codebook.quantize_scale(scale))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8), st.integers(1, 130), st.sampled_from(["int8-g32", "int4-row", "q6_k", "f16"]),
    st.lists(st.sampled_from([0.0, -0.0, 1e-45, -2e-39, 1.0, -3.5, float("inf"), float("nan")]), max_size=5),
)  # fmt: skip
def test_kernels_and_torch_count_the_same_magnitudes(rows: int, columns: int, text: str, special: list[float]) -> None:
    """Ragged groups, both zeros, subnormal values, infinity and NaN; bfloat16, float32 and a dtype without a kernel."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 131 + columns)).bfloat16()
    weight.flatten()[: len(special)] = torch.tensor(special)[: weight.numel()].bfloat16()
    scheme, counts = _parse(text), []
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        magnitudes = GroupMagnitudes.create("a.weight", scheme, columns)
        assert magnitudes is not None
        magnitudes.add(weight.to(dtype)[: rows // 2])
        magnitudes.add(weight.to(dtype)[rows // 2 :])
        counts.append(magnitudes.counts)

    limits = scale_limits(scheme, columns)
    assert limits is not None
    group = limits.group_columns
    assert int(counts[0].sum()) == rows * -(-columns // group)
    assert counts[0][0] == sum(
        not part.any() for row in weight.float() for part in torch.split(row, group)
    )  # NaN is not zero
    assert torch.equal(counts[0], counts[1])
    assert torch.equal(counts[0], counts[2])
