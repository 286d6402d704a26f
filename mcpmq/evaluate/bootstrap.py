"""Bootstrap over samples, with paired resamples, because the tokens of one answer are not independent."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcpmq.evaluate.schema import Estimate

NUM_RESAMPLES, RESAMPLES_PER_CHUNK = 10_000, 500
SEED = 0
CONFIDENCE = 0.95
SIGNIFICANT_DIGITS = 8  # of reported values; further digits depend on the order of additions

Floats: TypeAlias = NDArray[np.float64]


def bootstrap_mean(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Estimate the mean over all values; a cluster, the values of one sample, is resampled as a unit."""
    sums = np.array([math.fsum(cluster) for cluster in clusters])
    counts = np.array([len(cluster) for cluster in clusters], np.float64)
    return _estimate(sums.sum() / counts.sum(), len(clusters), lambda drawn: (drawn @ sums) / (drawn @ counts))


def bootstrap_quantile(clusters: Sequence[Sequence[float]], quantile: float) -> Estimate:
    """Estimate the smallest value that a fraction `quantile` of all values does not exceed, clusters as above."""
    values = np.concatenate([np.asarray(cluster, np.float64) for cluster in clusters])
    owners = np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]

    def quantiles(drawn: Floats) -> Floats:
        cumulative = drawn[:, owners].cumsum(axis=1)
        found: Floats = values[(cumulative < quantile * cumulative[:, -1:]).sum(axis=1)]
        return found

    value = quantiles(np.ones((1, len(clusters))))[0]
    return _estimate(value, len(clusters), quantiles)


@lru_cache(maxsize=4)  # all metrics of a group have the same number of samples
def resample_counts(num_samples: int) -> NDArray[np.uint16]:
    """Return how often each sample is drawn, [resamples, samples]; deterministic."""
    random = np.random.default_rng(SEED)
    return random.multinomial(num_samples, np.full(num_samples, 1 / num_samples), NUM_RESAMPLES).astype(np.uint16)


def _estimate(value: float, num_samples: int, statistic: Callable[[Floats], Floats]) -> Estimate:
    """Compute the percentile interval (Efron and Tibshirani 1993, chapters 6 and 13)."""
    if num_samples < 2:  # the error of a single sample is unknown
        return Estimate(value=_rounded(value), standard_error=math.nan, low=math.nan, high=math.nan)
    chunks = np.split(resample_counts(num_samples), NUM_RESAMPLES // RESAMPLES_PER_CHUNK)
    drawn = np.concatenate([statistic(chunk.astype(np.float64)) for chunk in chunks])
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    error = drawn.std(ddof=1)
    return Estimate(
        value=_rounded(value), standard_error=_rounded(error), low=_rounded(float(low)), high=_rounded(float(high))
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
