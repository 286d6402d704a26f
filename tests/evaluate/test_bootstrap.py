"""Estimates: the bootstrap against brute force, against formulas, and against repeating the experiment."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.evaluate.bootstrap import RESAMPLES, Estimate, mean_of, quantile_of, resamples

Clusters = st.lists(st.lists(st.floats(0, 20), min_size=1, max_size=5), min_size=2, max_size=12)


def every_resample(clusters: list[list[float]]) -> list[list[float]]:
    """All values of every resample, copied out one by one."""
    drawn = resamples(len(clusters))
    return [
        [value for one, times in zip(clusters, row, strict=True) for _ in range(times) for value in one]
        for row in drawn.tolist()
    ]


def test_resamples_draw_as_many_samples_as_there_are_and_are_the_same_every_time() -> None:
    """With replacement, each as likely as the others, from a fixed seed."""
    drawn = resamples(7)
    assert drawn.shape == (RESAMPLES, 7)
    assert set(drawn.sum(axis=1)) == {7}
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.05)
    resamples.cache_clear()
    np.testing.assert_array_equal(drawn, resamples(7))


@given(Clusters)
@settings(max_examples=4, deadline=None)
def test_a_mean_is_the_one_of_all_values_and_its_interval_that_of_the_resamples(clusters: list[list[float]]) -> None:
    """Written out: every resample's values copied and averaged."""
    means = [np.mean(values) for values in every_resample(clusters)]
    estimate = mean_of(clusters)
    assert estimate.value == pytest.approx(np.mean([value for one in clusters for value in one]))
    assert estimate.standard_error == pytest.approx(np.std(means, ddof=1), rel=1e-6, abs=1e-7)
    assert [estimate.low, estimate.high] == pytest.approx(
        np.quantile(means, [0.025, 0.975]).tolist(), rel=1e-6, abs=1e-7
    )


@given(Clusters, st.sampled_from([0.5, 0.9, 0.99]))
@settings(max_examples=4, deadline=None)
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(
    clusters: list[list[float]], share: float
) -> None:
    """Written out: sorted, counted, in every resample."""

    def quantile(values: list[float]) -> float:
        return sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]

    found = [quantile(values) for values in every_resample(clusters)]
    estimate = quantile_of(clusters, share)
    assert estimate.value == pytest.approx(quantile([value for one in clusters for value in one]))
    assert [estimate.low, estimate.high] == pytest.approx(
        np.quantile(found, [0.025, 0.975]).tolist(), rel=1e-6, abs=1e-7
    )


def test_the_error_of_a_mean_is_that_of_the_formula_for_clusters() -> None:
    """Linearisation of the ratio sum / count (Cochran 1977, section 6.3)."""
    random = np.random.default_rng(0)
    clusters = [list(random.normal(random.normal(2, 1), 0.3, random.integers(1, 9))) for _ in range(200)]
    sums, counts = np.array([sum(one) for one in clusters]), np.array([len(one) for one in clusters])
    mean = sums.sum() / counts.sum()
    expected = math.sqrt(200 / 199 * ((sums - mean * counts) ** 2).sum()) / counts.sum()
    assert mean_of(clusters).standard_error == pytest.approx(expected, rel=0.03)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    """Over many simulated sets whose tokens hang together within a sample."""
    random = np.random.default_rng(1)

    def holds() -> bool:
        lengths, levels = random.integers(1, 9, 60), random.normal(2, 1, 60)
        drawn = mean_of([list(random.normal(level, 0.3, size)) for size, level in zip(lengths, levels, strict=True)])
        return drawn.low <= 2 <= drawn.high

    assert 0.9 <= np.mean([holds() for _ in range(150)]) <= 0.99


def test_a_perplexity_has_the_error_of_its_logarithm() -> None:
    """By the delta method; its interval is the raised one; a loss beyond what can be raised is no crash."""
    perplexity = Estimate(value=2.0, standard_error=0.01, low=1.98, high=2.03).exponential()
    assert perplexity.value == pytest.approx(math.e**2)
    assert perplexity.standard_error == pytest.approx(math.e**2 * 0.01)
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(1.98), math.exp(2.03)))
    assert Estimate(value=5000.0, standard_error=1.0, low=4000.0, high=6000.0).exponential().value > 1e300


def test_one_sample_has_no_error_and_survives_json() -> None:
    """What is not known is not zero, and valid JSON holds it."""
    estimate = mean_of([[1.0, 2.0]])
    again = Estimate.model_validate_json(estimate.model_dump_json())
    assert again.value == 1.5
    assert math.isnan(again.standard_error)
    assert math.isnan(again.low)
    assert math.isnan(again.exponential().high)
