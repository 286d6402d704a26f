"""The bootstrap against a brute-force version, formulas and simulated experiments."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.evaluate.bootstrap import bootstrap_mean, bootstrap_quantile, resample_counts
from mcpmq.evaluate.schema import Estimate

Clusters = st.lists(st.lists(st.floats(0, 20), min_size=1, max_size=5), min_size=2, max_size=12)


def every_resample(clusters: list[list[float]]) -> list[list[float]]:
    """Return all values of every resample, with repetition."""
    drawn = resample_counts(len(clusters))
    return [
        [value for one, times in zip(clusters, row, strict=True) for _ in range(times) for value in one]
        for row in drawn.tolist()
    ]


def test_resamples_draw_all_samples_with_replacement_and_are_deterministic() -> None:
    """Each of 10,000 resamples has as many draws as samples, with equal probabilities and a fixed seed."""
    drawn = resample_counts(7)
    assert drawn.shape == (10_000, 7)
    assert set(drawn.sum(axis=1)) == {7}
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.05)
    resample_counts.cache_clear()
    np.testing.assert_array_equal(drawn, resample_counts(7))


def test_reports_of_the_same_samples_have_the_same_intervals() -> None:
    """The seed is fixed: estimates of fixed values have these standard errors and intervals on every machine."""
    clusters = [[1.0, 2.0], [0.5], [3.0, 0.25, 4.0], [7.0]]
    assert bootstrap_mean(clusters) == Estimate(value=2.5357143, standard_error=0.88764039, low=1.1666667, high=4.8)
    assert bootstrap_quantile(clusters, 0.5) == Estimate(value=2.0, standard_error=1.2821974, low=0.5, high=7.0)


@given(Clusters)
@settings(max_examples=4, deadline=None)
def test_a_mean_has_the_interval_of_its_resamples(clusters: list[list[float]]) -> None:
    """Value, standard error and interval equal those of a brute-force bootstrap."""
    means = [np.mean(values) for values in every_resample(clusters)]
    estimate = bootstrap_mean(clusters)
    assert estimate.value == pytest.approx(np.mean([value for one in clusters for value in one]))
    assert estimate.standard_error == pytest.approx(np.std(means, ddof=1), rel=1e-6, abs=1e-7)
    assert [estimate.low, estimate.high] == pytest.approx(
        np.quantile(means, [0.025, 0.975]).tolist(), rel=1e-6, abs=1e-7
    )


@given(Clusters, st.sampled_from([0.5, 0.9, 0.99]))
@settings(max_examples=4, deadline=None)
def test_a_quantile_has_the_interval_of_its_resamples(clusters: list[list[float]], fraction: float) -> None:
    """Value and interval equal those of sorting and counting in every resample."""

    def quantile(values: list[float]) -> float:
        return sorted(values)[math.ceil(fraction * len(values) - 1e-9) - 1]

    found = [quantile(values) for values in every_resample(clusters)]
    estimate = bootstrap_quantile(clusters, fraction)
    assert estimate.value == pytest.approx(quantile([value for one in clusters for value in one]))
    assert [estimate.low, estimate.high] == pytest.approx(
        np.quantile(found, [0.025, 0.975]).tolist(), rel=1e-6, abs=1e-7
    )


def test_the_standard_error_of_a_mean_matches_the_formula_for_clusters() -> None:
    """The formula is the linearization of the ratio sum / count (Cochran 1977, section 6.3)."""
    random = np.random.default_rng(0)
    clusters = [list(random.normal(random.normal(2, 1), 0.3, random.integers(1, 9))) for _ in range(200)]
    sums, counts = np.array([sum(one) for one in clusters]), np.array([len(one) for one in clusters])
    mean = sums.sum() / counts.sum()
    expected = math.sqrt(200 / 199 * ((sums - mean * counts) ** 2).sum()) / counts.sum()
    assert bootstrap_mean(clusters).standard_error == pytest.approx(expected, rel=0.03)


def test_nineteen_of_twenty_intervals_contain_the_true_mean() -> None:
    """The coverage is near 95 % over simulated sets with correlated tokens within a sample."""
    random = np.random.default_rng(1)

    def contains_mean() -> bool:
        lengths, levels = random.integers(1, 9, 60), random.normal(2, 1, 60)
        drawn = bootstrap_mean(
            [list(random.normal(level, 0.3, size)) for size, level in zip(lengths, levels, strict=True)]
        )
        return drawn.low <= 2 <= drawn.high

    assert 0.9 <= np.mean([contains_mean() for _ in range(150)]) <= 0.99


def test_one_sample_has_an_unknown_error_that_json_can_store() -> None:
    """The standard error and the interval of one sample are NaN, also after a JSON round trip."""
    estimate = bootstrap_mean([[1.0, 2.0]])
    again = Estimate.model_validate_json(estimate.model_dump_json())
    assert again.value == 1.5
    assert math.isnan(again.standard_error)
    assert math.isnan(again.low)
    assert math.isnan(again.exponential().high)
