"""Metrics of groups and differences between models, computed by hand."""

import math

import pytest

from mcpmq.errors import ArtifactError
from mcpmq.evaluate.metrics import changes, differences, group_results
from mcpmq.evaluate.schema import ComparedTokens, SampleMetrics


def sample_metrics(
    name: str, group: str, losses: list[float], correct: list[bool], divergences: list[float], matches: list[bool]
) -> SampleMetrics:
    """Return the metrics of a sample that was compared with the reference model `m`."""
    compared = ComparedTokens(kl_divergences=tuple(divergences), top1_match=tuple(matches))
    return SampleMetrics(
        id=name, group=group, losses=tuple(losses), correct=tuple(correct), argmax_ids=(), compared={"m": compared}
    )


BEFORE = [
    sample_metrics("a", "image", [1.0, 2.0], [True, True], [0, 0], [True, True]),
    sample_metrics("b", "text", [0.5], [True], [0], [True]),
    sample_metrics("c", "image", [3.0], [False], [0], [True]),
]
AFTER = [
    sample_metrics("a", "image", [1.5, 2.5], [True, False], [0.1, 0.2], [True, False]),
    sample_metrics("b", "text", [0.5], [True], [0.3], [True]),
    sample_metrics("c", "image", [2.0], [True], [0.6], [False]),
]


def test_group_results_are_over_tokens_and_answers() -> None:
    """Loss and top-1 accuracy are means over tokens; exact match is the fraction of fully correct answers."""
    results = group_results(BEFORE)
    assert list(results) == ["image", "text"]
    image = results["image"]
    assert (image.samples, image.tokens) == (2, 3)
    assert image.loss.value == pytest.approx(2)
    assert image.perplexity.value == pytest.approx(math.exp(2))
    assert image.top_1_accuracy.value == pytest.approx(2 / 3)
    assert image.exact_match.value == 0.5


def test_differences_are_paired_by_token() -> None:
    """Divergences, agreement and probability changes are those of the tokens of one group."""
    image = differences(BEFORE, AFTER, "m")["image"]
    assert image.loss_increase.value == pytest.approx(0)
    assert image.perplexity_ratio.value == pytest.approx(1)
    assert image.kl_divergence.value == pytest.approx(0.3)
    assert image.kl_divergence_99th_percentile.value == 0.6
    assert image.kl_divergence_largest == 0.6
    assert image.top_1_agreement.value == pytest.approx(1 / 3)
    assert image.greedy_agreement.value == 0
    increases = [math.exp(-after) - math.exp(-before) for before, after in ((1, 1.5), (2, 2.5), (3, 2))]
    assert image.probability_change.value == pytest.approx(sum(increases) / 3)
    assert image.exact_match_change.value == 0
    assert (image.exact_match_change.low, image.exact_match_change.high) == (-1, 1)
    assert differences(BEFORE, AFTER, "m")["text"].greedy_agreement.value == 1


def test_loss_increase_and_perplexity_ratio_have_the_sign_of_the_change() -> None:
    """A loss that rises from 0.5 to 0.9 is an increase of 0.4 nats and a ratio of exp(0.4)."""
    worse = [sample_metrics("b", "text", [0.9], [False], [0.25], [False])]
    text = differences(BEFORE[1:2], worse, "m")["text"]
    assert text.loss_increase.value == pytest.approx(0.4)
    assert text.perplexity_ratio.value == pytest.approx(math.exp(0.4))
    assert text.probability_change.value == pytest.approx(math.exp(-0.9) - math.exp(-0.5))
    assert text.exact_match_change.value == -1


def test_the_99th_percentile_is_exceeded_by_one_token_in_a_hundred() -> None:
    """The percentile of 1,000 divergences 0.001, 0.002, ..., 1 is 0.99."""
    divergences = [number / 1000 for number in range(1, 1001)]
    zeros, true = [0.0] * 1000, [True] * 1000
    before = [sample_metrics("a", "text", zeros, true, zeros, true)]
    after = [sample_metrics("a", "text", zeros, true, divergences[::-1], true)]
    text = differences(before, after, "m")["text"]
    assert text.kl_divergence_99th_percentile.value == 0.99
    assert text.kl_divergence_largest == 1


def test_changes_are_from_the_earlier_to_the_later_artifact() -> None:
    """Each change is later minus earlier, per token or per answer."""
    image = changes(BEFORE, AFTER, "m")["image"]
    assert image.perplexity_ratio.value == pytest.approx(1)
    assert image.kl_divergence_increase.value == pytest.approx(0.3)
    assert image.top_1_agreement_change.value == pytest.approx(-2 / 3)
    reverse = changes(AFTER, BEFORE, "m")["image"]
    assert reverse.kl_divergence_increase.value == pytest.approx(-0.3)
    assert reverse.top_1_agreement_change.value == pytest.approx(2 / 3)


def test_different_samples_cannot_be_paired() -> None:
    """A missing sample, another length of an answer and a missing comparison are errors."""
    for others in (BEFORE[:2], [*BEFORE[:2], sample_metrics("c", "image", [1, 2], [True] * 2, [0, 0], [True] * 2)]):
        with pytest.raises(ArtifactError, match="different samples"):
            differences(others, AFTER, "m")
    with pytest.raises(ArtifactError, match="not compared with `n`"):
        differences(BEFORE, AFTER, "n")
    with pytest.raises(ArtifactError, match="not compared with `n`"):
        changes(BEFORE, AFTER, "n")


def test_groups_are_those_of_the_reference_model() -> None:
    """A sample that is tagged differently in the later measurement stays in its group."""
    moved = [AFTER[0], AFTER[1].model_copy(update={"group": "image"}), AFTER[2]]
    assert str(differences(BEFORE, moved, "m")) == str(differences(BEFORE, AFTER, "m"))  # NaN is not equal to itself
    assert str(changes(BEFORE, moved, "m")) == str(changes(BEFORE, AFTER, "m"))
