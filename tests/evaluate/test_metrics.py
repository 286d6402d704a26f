"""What is said of answers: every metric counted out by hand."""

import math

import pytest

from mcpmq.errors import ArtifactError
from mcpmq.evaluate.metrics import ComparedTokens, SampleFigures, by_kind, differences


def figures(
    name: str, kind: str, losses: list[float], right: list[bool], divergences: list[float], same: list[bool]
) -> SampleFigures:
    """Of one sample, compared with the model `m`."""
    compared = ComparedTokens(kl_divergences=tuple(divergences), same_top=tuple(same))
    return SampleFigures(
        id=name, kind=kind, losses=tuple(losses), right=tuple(right), likeliest=(), compared={"m": compared}
    )


BEFORE = [
    figures("a", "image", [1.0, 2.0], [True, True], [0, 0], [True, True]),
    figures("b", "text", [0.5], [True], [0], [True]),
    figures("c", "image", [3.0], [False], [0], [True]),
]
AFTER = [
    figures("a", "image", [1.5, 2.5], [True, False], [0.1, 0.2], [True, False]),
    figures("b", "text", [0.5], [True], [0.3], [True]),
    figures("c", "image", [2.0], [True], [0.6], [False]),
]


def test_results_of_a_kind_are_over_its_tokens_and_answers() -> None:
    """Shares of tokens, and shares of answers of which every token is right."""
    results = by_kind(BEFORE)
    assert list(results) == ["image", "text"]
    image = results["image"]
    assert (image.samples, image.tokens) == (2, 3)
    assert image.loss.value == pytest.approx(2)
    assert image.perplexity.value == pytest.approx(math.exp(2))
    assert image.top_1_accuracy.value == pytest.approx(2 / 3)
    assert image.exact_match.value == 0.5


def test_differences_are_taken_token_by_token() -> None:
    """On the tokens of one kind: mean, far and largest divergence, agreement, chances of the right tokens."""
    image = differences(BEFORE, AFTER, "m")["image"]
    assert image.loss_increase.value == pytest.approx(0)
    assert image.perplexity_ratio.value == pytest.approx(1)
    assert image.kl_divergence.value == pytest.approx(0.3)
    assert image.kl_divergence_99th_percentile.value == 0.6
    assert image.kl_divergence_largest == 0.6
    assert image.top_1_agreement.value == pytest.approx(1 / 3)
    assert image.greedy_agreement.value == 0
    chances = [math.exp(-b) - math.exp(-a) for a, b in ((1, 1.5), (2, 2.5), (3, 2))]
    assert image.probability_change.value == pytest.approx(sum(chances) / 3)
    assert image.exact_match_change.value == 0
    assert (image.exact_match_change.low, image.exact_match_change.high) == (-1, 1)
    assert differences(BEFORE, AFTER, "m")["text"].greedy_agreement.value == 1


def test_other_samples_cannot_be_paired() -> None:
    """Neither fewer of them nor answers of another length, nor what was compared with another model."""
    for others in (BEFORE[:2], [*BEFORE[:2], figures("c", "image", [1, 2], [True] * 2, [0, 0], [True] * 2)]):
        with pytest.raises(ArtifactError, match="different samples"):
            differences(others, AFTER, "m")
    with pytest.raises(ArtifactError, match="not compared with `n`"):
        differences(BEFORE, AFTER, "n")
