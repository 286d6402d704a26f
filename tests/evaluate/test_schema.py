"""Records of a measurement: derived values of estimates, and values per token."""

import math

import pytest
from pydantic import ValidationError

from mcpmq.evaluate.schema import ComparedTokens, Estimate, SampleMetrics


def test_a_perplexity_has_the_error_of_its_logarithm() -> None:
    """The delta method gives the standard error; the interval is exponentiated."""
    perplexity = Estimate(value=2.0, standard_error=0.01, low=1.98, high=2.03).exponential()
    assert perplexity.value == pytest.approx(math.e**2)
    assert perplexity.standard_error == pytest.approx(math.e**2 * 0.01)
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(1.98), math.exp(2.03)))


def test_the_exponential_of_a_huge_loss_is_finite() -> None:
    """Exponents are limited to 700, because float64 overflows at 710."""
    huge = Estimate(value=5000.0, standard_error=1.0, low=699.0, high=6000.0).exponential()
    assert (huge.value, huge.low, huge.high) == (math.exp(700), math.exp(699), math.exp(700))


def test_the_half_width_is_half_of_the_interval() -> None:
    """An interval from 1.5 to 4 has a half width of 1.25, wherever its value is."""
    assert Estimate(value=2.0, standard_error=0.5, low=1.5, high=4.0).half_width == 1.25


def _sample(losses: tuple[float, ...] = (0.5, 1.5), group: str = "text", divergences: int = 2) -> SampleMetrics:
    compared = ComparedTokens(kl_divergences=(0.1,) * divergences, top1_match=(True, False))
    values = {"losses": losses, "correct": (True, False), "argmax_ids": (3, 4), "compared": {"original": compared}}
    return SampleMetrics.model_validate({"id": "1", "group": group, **values})


def test_equal_numbers_of_values_are_valid() -> None:
    """Two values per token."""
    assert _sample().losses == (0.5, 1.5)


@pytest.mark.parametrize(
    ("losses", "group", "divergences", "message"),
    [
        ((0.5,), "text", 2, "the numbers of values per token differ"),
        ((0.5, 1.5), "text", 3, "the numbers of values per token differ"),
        (
            (0.5, 1.5),
            "sound",
            2,
            "the group `sound` is not one of image, nonsquare, images, video",
        ),
        ((0.5, -1e9), "text", 2, "a loss is not a number below 700"),
        ((0.5, float("nan")), "text", 2, "a loss is not a number below 700"),
    ],
)
def test_inconsistent_values_are_errors(losses: tuple[float, ...], group: str, divergences: int, message: str) -> None:
    """Lengths, groups and the range of losses are checked."""
    with pytest.raises(ValidationError, match=message):
        _sample(losses, group, divergences)
