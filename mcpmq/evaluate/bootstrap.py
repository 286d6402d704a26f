"""A figure and how sure it is: paired bootstrap over samples, since the tokens of one answer are not independent."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcpmq.evaluate.record import Record

RESAMPLES, RESAMPLES_AT_ONCE = 10_000, 500
SEED = 0
CONFIDENCE = 0.95
LARGEST_EXPONENT = 700.0
DIGITS = 8  # significant ones of what is reported: what further ones say depends on the order of additions

Floats: TypeAlias = NDArray[np.float64]


class Estimate(Record):
    """A figure, the spread of its bootstrap resamples, and the interval that holds 95 % of them."""

    value: float
    standard_error: float
    low: float
    high: float

    def exponential(self) -> "Estimate":
        """Of exp(value): a perplexity, or a ratio of perplexities; its error by the delta method."""
        value, low, high = (math.exp(min(one, LARGEST_EXPONENT)) for one in (self.value, self.low, self.high))
        return Estimate(value=value, standard_error=value * self.standard_error, low=low, high=high)

    @property
    def half_width(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


def mean_of(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Of the mean over all values, which come in clusters: the values of one sample are drawn together."""
    sums = np.array([math.fsum(one) for one in clusters])
    counts = np.array([len(one) for one in clusters], np.float64)
    return _estimate(sums.sum() / counts.sum(), len(clusters), lambda drawn: (drawn @ sums) / (drawn @ counts))


def quantile_of(clusters: Sequence[Sequence[float]], share: float) -> Estimate:
    """Of the smallest value that `share` of all values do not exceed; the values of one sample are drawn together."""
    values = np.concatenate([np.asarray(one, np.float64) for one in clusters])
    owners = np.repeat(np.arange(len(clusters)), [len(one) for one in clusters])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]

    def quantiles(drawn: Floats) -> Floats:
        reached = drawn[:, owners].cumsum(axis=1)
        found: Floats = values[(reached < share * reached[:, -1:]).sum(axis=1)]
        return found

    value = quantiles(np.ones((1, len(clusters))))[0]
    return _estimate(value, len(clusters), quantiles)


@lru_cache(maxsize=4)  # all metrics of one kind of sample have the same
def resamples(samples: int) -> NDArray[np.uint16]:
    """How often each sample is drawn, [resamples, samples]; the same on every call."""
    random = np.random.default_rng(SEED)
    return random.multinomial(samples, np.full(samples, 1 / samples), RESAMPLES).astype(np.uint16)


def _estimate(value: float, samples: int, statistic: Callable[[Floats], Floats]) -> Estimate:
    """Efron and Tibshirani 1993, chapters 6 and 13: the percentile interval."""
    if samples < 2:  # what is not known is not zero
        return Estimate(value=_rounded(value), standard_error=math.nan, low=math.nan, high=math.nan)
    chunks = np.split(resamples(samples), RESAMPLES // RESAMPLES_AT_ONCE)
    drawn = np.concatenate([statistic(chunk.astype(np.float64)) for chunk in chunks])
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    error = drawn.std(ddof=1)
    return Estimate(
        value=_rounded(value), standard_error=_rounded(error), low=_rounded(float(low)), high=_rounded(float(high))
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
