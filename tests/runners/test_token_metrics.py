"""Judging logits while an engine runs: figures of every token, and only these."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.errors import EngineError
from mcpmq.families.family import Inputs
from mcpmq.runners.logprobs import log_softmax
from mcpmq.runners.token_metrics import TokenJudge, kl_divergence


def sample(name: str, answer: list[int]) -> Inputs:
    """A sample without an image and with that answer."""
    return Inputs(name, np.array([9, 9, *answer]), 2, (), np.zeros((0, 2), np.int64))


def test_losses_and_right_tokens_are_the_definitions() -> None:
    """-log of the probability; right where nothing is likelier."""
    rows = np.float32([[0, 0, 5, 0], [1, 2, 3, 4]])
    judged = TokenJudge([sample("a", [2, 0])], None, {})(sample("a", [2, 0]), rows)
    chances = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    np.testing.assert_allclose(judged.losses, [-np.log(chances[0, 2]), -np.log(chances[1, 0])], rtol=1e-5)
    assert judged.likeliest == [2, 3]
    assert judged.compared == {}


def test_samples_are_found_again_whatever_their_order(tmp_path: Path) -> None:
    """What one judge kept the other compares with, sample by sample and token by token."""
    samples, random = [sample("a", [1, 2]), sample("b", [3]), sample("c", [0, 1, 2])], np.random.default_rng(0)
    rows = {one.id: random.normal(size=(len(one.tokens) - 2, 7)).astype(np.float32) for one in samples}
    keeping = TokenJudge(samples, tmp_path / "kept", {})
    for one in samples[::-1]:
        keeping(one, rows[one.id])
    keeping.close()
    comparing = TokenJudge(samples, None, {"original": tmp_path / "kept"})
    for one in samples[1:] + samples[:1]:
        same = comparing(one, iter(rows[one.id])).compared["original"]
        assert max(same.kl_divergences) < 1e-9
        assert all(same.same_top)
    other = comparing(samples[1], -rows["b"]).compared["original"]
    expected, found = log_softmax(rows["b"][0]), log_softmax(-rows["b"][0])
    assert other.kl_divergences == pytest.approx([kl_divergence(expected, found)], abs=1e-6)
    assert other.same_top == [False]
    comparing.close()


def test_its_own_time_is_known(tmp_path: Path) -> None:
    """So that the engine's can be told without it."""
    judge = TokenJudge([sample("a", [1, 2])], tmp_path / "kept", {})
    judge(sample("a", [1, 2]), np.zeros((2, 5), np.float32))
    judge.close()
    assert 0 < judge.seconds < 10


def test_too_few_logits_are_an_error() -> None:
    """An answer that was not judged whole is not judged."""
    judge = TokenJudge([sample("a", [1, 2])], None, {})
    with pytest.raises(EngineError, match="`a`: logits of 1 tokens for an answer of 2"):
        judge(sample("a", [1, 2]), np.zeros((1, 5), np.float32))


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.lists(st.floats(-30, 30), min_size=9, max_size=9))
def test_a_divergence_is_the_definition(first: list[float], second: list[float]) -> None:
    """The sum over the vocabulary written out; zero with itself, never below."""
    expected, found = log_softmax(np.array(first)), log_softmax(np.array(second[: len(first)]))
    written = sum(np.exp(p) * (p - q) for p, q in zip(expected, found, strict=True))
    assert kl_divergence(expected, found) == pytest.approx(written, abs=1e-9)
    assert kl_divergence(expected, found) >= 0
    assert kl_divergence(expected, expected) == 0
