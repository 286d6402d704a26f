"""Tests of sampling against probabilities computed by hand."""

import numpy as np
import pytest

from mcpmq.errors import EngineError
from mcpmq.serving.engine import Sampling
from mcpmq.serving.sampling import Sampler, log_softmax, most_probable, nucleus

LOGITS = np.array([1.0, 3.0, -2.0, 2.5, 0.0], np.float32)


def _brute_force(temperature: float, top_p: float) -> dict[int, float]:
    """Add the most probable tokens one by one until their probabilities reach `top_p`."""
    powers = [np.exp(value / temperature) for value in LOGITS.tolist()]
    probabilities = {token: power / sum(powers) for token, power in enumerate(powers)}
    kept: dict[int, float] = {}
    while sum(kept.values()) < top_p and len(kept) < len(LOGITS):
        token = max(probabilities.keys() - kept.keys(), key=probabilities.__getitem__)
        kept[token] = probabilities[token]
    return {token: value / sum(kept.values()) for token, value in kept.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.93, 1.0])
def test_the_frequencies_are_those_of_the_definition(temperature: float, top_p: float) -> None:
    """5,000 samples have the frequencies of the brute force, and no token outside of the nucleus occurs."""
    expected = _brute_force(temperature, top_p)
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, seed=4))

    counts = np.bincount([sampler(LOGITS) for _ in range(5_000)], minlength=len(LOGITS)) / 5_000

    assert counts.tolist() == pytest.approx([expected.get(token, 0.0) for token in range(len(LOGITS))], abs=0.025)
    assert [token for token, count in enumerate(counts) if count and token not in expected] == []


def test_the_nucleus_is_sorted_and_sums_up_to_one() -> None:
    """The first token is the most probable one; equal tokens keep their order."""
    tokens, probabilities = nucleus(np.array([0.0, 5.0, 5.0]), 0.9)

    assert tokens.tolist() == [1, 2]
    assert probabilities.sum() == pytest.approx(1.0)


def test_equal_seeds_give_equal_tokens() -> None:
    """The same seed repeats a sequence; another seed does not."""
    first, again, other = (Sampler(Sampling(temperature=1.5, seed=seed)) for seed in (3, 3, 8))
    drawn = [[sampler(LOGITS) for _ in range(30)] for sampler in (first, again, other)]

    assert drawn[0] == drawn[1] != drawn[2]


def test_temperature_zero_takes_the_most_probable_token() -> None:
    """Greedy decoding takes the first of equal tokens."""
    sampler = Sampler(Sampling())

    assert sampler(LOGITS) == 1
    assert sampler(np.array([0.5, 2.0, 2.0], np.float32)) == 1


def test_logits_that_are_not_finite_are_an_error() -> None:
    """An overflow in the engine ends the answer instead of choosing a wrong token."""
    with pytest.raises(EngineError, match="not finite"):
        Sampler(Sampling())(np.array([1.0, np.nan], np.float32))


def test_log_probabilities_are_those_of_softmax() -> None:
    """Their exponentials sum up to one, and large logits do not overflow."""
    logprobs = log_softmax(LOGITS + 1e4)

    assert np.exp(logprobs).sum() == pytest.approx(1.0)
    assert logprobs[1] == pytest.approx(3.0 - np.log(np.exp(LOGITS.astype(float)).sum()), abs=1e-3)
    assert most_probable(logprobs, 3) == [1, 3, 0]
