"""Per-token metrics computed from streamed logits."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.errors import EngineError
from mcpmq.families.inputs import Inputs
from mcpmq.runners.logprobs import log_softmax
from mcpmq.runners.token_metrics import TokenMetrics, kl_divergence


def sample(name: str, answer: list[int]) -> Inputs:
    """Return a text sample with two prompt tokens and the given answer."""
    return Inputs(name, np.array([9, 9, *answer]), 2, (), np.zeros((0, 2), np.int64))


def test_losses_and_argmax_match_their_definitions() -> None:
    """A loss is the negative log of the softmax probability; the argmax id is the most probable token."""
    rows = np.array([[0, 0, 5, 0], [1, 2, 3, 4]], np.float32)
    results = TokenMetrics([sample("a", [2, 0])], None, {})(sample("a", [2, 0]), rows)
    probabilities = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    expected = [-np.log(probabilities[0, 2]), -np.log(probabilities[1, 0])]
    np.testing.assert_allclose(results.losses, expected, rtol=1e-5)
    assert results.argmax_ids == [2, 3]
    assert results.compared == {}


def test_saved_rows_are_matched_by_sample_in_any_order(tmp_path: Path) -> None:
    """Samples saved in one order and compared in another order are compared token by token with themselves."""
    samples, random = [sample("a", [1, 2]), sample("b", [3]), sample("c", [0, 1, 2])], np.random.default_rng(0)
    rows = {one.id: random.normal(size=(len(one.tokens) - 2, 7)).astype(np.float32) for one in samples}
    saving = TokenMetrics(samples, tmp_path / "saved", {})
    for one in samples[::-1]:
        saving(one, rows[one.id])
    saving.close()
    comparing = TokenMetrics(samples, None, {"original": tmp_path / "saved"})
    for one in samples[1:] + samples[:1]:
        same = comparing(one, iter(rows[one.id])).compared["original"]
        assert max(same.kl_divergences) < 1e-9
        assert all(same.top1_match)
    other = comparing(samples[1], -rows["b"]).compared["original"]
    reference, candidate = log_softmax(rows["b"][0]), log_softmax(-rows["b"][0])
    assert other.kl_divergences == pytest.approx([kl_divergence(reference, candidate)], abs=1e-6)
    assert other.top1_match == [False]
    comparing.close()


def test_time_spent_on_metrics_is_counted(tmp_path: Path) -> None:
    """`seconds` allows the caller to subtract the metrics from the engine's time."""
    metrics = TokenMetrics([sample("a", [1, 2])], tmp_path / "saved", {})
    metrics(sample("a", [1, 2]), np.zeros((2, 5), np.float32))
    metrics.close()
    assert 0 < metrics.seconds < 10


def test_missing_logits_are_an_error() -> None:
    """An answer with fewer rows of logits than tokens raises an error."""
    metrics = TokenMetrics([sample("a", [1, 2])], None, {})
    with pytest.raises(EngineError, match="`a`: logits of 1 token for an answer of 2"):
        metrics(sample("a", [1, 2]), np.zeros((1, 5), np.float32))


def test_kl_divergence_is_taken_from_the_reference() -> None:
    """KL(reference || candidate) of two asymmetric distributions, computed by hand."""
    reference, candidate = np.log([0.7, 0.2, 0.1]), np.log([0.25, 0.25, 0.5])
    forward = 0.7 * np.log(0.7 / 0.25) + 0.2 * np.log(0.2 / 0.25) + 0.1 * np.log(0.1 / 0.5)
    assert kl_divergence(reference, candidate) == pytest.approx(forward, abs=1e-12)
    assert kl_divergence(candidate, reference) != pytest.approx(forward, abs=1e-2)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.lists(st.floats(-30, 30), min_size=9, max_size=9))
def test_kl_divergence_matches_its_definition(first: list[float], second: list[float]) -> None:
    """The divergence is the sum over the vocabulary, zero for equal distributions and never negative."""
    reference, candidate = log_softmax(np.array(first)), log_softmax(np.array(second[: len(first)]))
    expected = sum(np.exp(p) * (p - q) for p, q in zip(reference, candidate, strict=True))
    assert kl_divergence(reference, candidate) == pytest.approx(expected, abs=1e-9)
    assert kl_divergence(reference, candidate) >= 0
    assert kl_divergence(reference, reference) == 0
