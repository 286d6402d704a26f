"""Comparison of task scores: means, paired changes, and changes between two reports."""

import math

import pytest

from mcpmq.evaluate.task_scores import compare_scores, score_changes

BEFORE = {f"s{number}": float(number % 3 == 0) for number in range(60)}


def test_changes_are_paired_by_sample() -> None:
    """An equal change of every sample has an interval without width, although the scores vary."""
    found = compare_scores("anls", BEFORE, {name: score + 0.25 for name, score in BEFORE.items()})

    assert found.metric == "anls"
    assert found.original.value == pytest.approx(1 / 3)
    assert found.artifact.value == pytest.approx(1 / 3 + 0.25)
    assert (found.score_change.value, found.score_change.low, found.score_change.high) == (0.25, 0.25, 0.25)
    assert found.original.half_width > 0.05


def test_the_interval_is_that_of_the_standard_error() -> None:
    """For one change of 12 in 60 samples, the half interval is near 1.96 standard errors of the mean difference."""
    after = BEFORE | {f"s{number}": 0.0 for number in range(0, 36, 3)}
    change = compare_scores("exact", BEFORE, after).score_change
    share = 12 / 60
    error = math.sqrt(share * (1 - share) / 60)

    assert change.value == pytest.approx(-share)
    assert change.standard_error == pytest.approx(error, rel=0.05)
    assert change.half_width == pytest.approx(1.96 * error, rel=0.1)


def test_the_order_of_samples_does_not_matter() -> None:
    """Files that list the samples in another order give the same numbers."""
    after = dict.fromkeys(BEFORE, 0.5)
    backwards = dict(reversed(BEFORE.items()))

    assert compare_scores("exact", backwards, after) == compare_scores("exact", BEFORE, after)


def test_an_interval_of_one_sample_is_unknown() -> None:
    """The mean is known, its interval is not."""
    found = compare_scores("exact", {"a": 1.0}, {"a": 0.5})

    assert found.score_change.value == -0.5
    assert math.isnan(found.score_change.half_width)


def test_two_artifacts_are_compared_on_the_same_samples() -> None:
    """The later artifact minus the earlier one; tasks with other samples, or in one report only, are left out."""
    worse = {name: score - 0.5 for name, score in BEFORE.items()}
    earlier = {name: compare_scores("exact", BEFORE, BEFORE) for name in ("same", "other", "earlier")}
    part = {"s1": 0.0, "s2": 0.0}
    later = {"same": compare_scores("exact", BEFORE, worse), "other": compare_scores("exact", part, part)}

    [(task, change)] = score_changes(earlier, later).items()

    assert (task, change.value, change.low, change.high) == ("same", -0.5, -0.5, -0.5)
    assert score_changes(earlier, {"same": compare_scores("f1", BEFORE, worse)}) == {}
