"""Log-probabilities on disk: as good as the ones that were written, and never another model's."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.errors import EngineError
from mcpmq.runners.logprobs import LEAST, LogProbabilities, log_softmax, nbytes_of
from mcpmq.runners.token_metrics import kl_divergence

PUBLISHED_VOCABULARY = 151_666


def test_log_softmax_is_the_definition() -> None:
    """Also with logits far from zero; what cannot come is a number still."""
    logits = np.float32([1000, 1001, 999])
    np.testing.assert_allclose(log_softmax(logits), logits - 1000 - np.log(1 + np.exp(1) + np.exp(-1)), rtol=1e-12)
    assert log_softmax(np.float32([0, -np.inf])).tolist() == [0, LEAST]
    assert np.isnan(log_softmax(np.float32([0, np.inf]))).all()


@given(st.integers(1, 2**32 - 1), st.integers(1, 400), st.integers(1, 5), st.sampled_from([0.0, 0.1, 3.0, 9.0]))
@settings(max_examples=60, deadline=None)
def test_rows_come_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, vocabulary: int, rows: int, spread: float
) -> None:
    """Normalised, near what was written, the likeliest token exactly, the first of equals as argmax has it."""
    random, file = np.random.default_rng(seed), tmp_path_factory.mktemp("rows") / "file"
    written = [log_softmax(np.round(spread * random.normal(size=vocabulary), 1)) for _ in range(rows)]
    writer = LogProbabilities(file, rows, vocabulary, write=True)
    for row in random.permutation(rows).tolist():
        writer.write(row, written[row])
    writer.close()
    reader = LogProbabilities(file, rows, vocabulary)
    for row in random.permutation(rows).tolist():
        values, top = reader.read(row)
        assert top == written[row].argmax()
        np.testing.assert_allclose(np.maximum(values, -32), np.maximum(written[row], -32), atol=5e-4)
        assert np.exp(values).sum() == pytest.approx(1, abs=1e-12)
    reader.close()
    assert file.stat().st_size == nbytes_of(rows, vocabulary)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_a_divergence_is_exact_to_a_millionth_nat(spread: float, noise: float, tmp_path: Path) -> None:
    """With the vocabulary of published models, for flat and for peaked distributions, near and far."""
    random = np.random.default_rng(0)
    for row in range(3):
        logits = random.normal(0, spread, PUBLISHED_VOCABULARY)
        expected, found = log_softmax(logits), log_softmax(logits + random.normal(0, noise, PUBLISHED_VOCABULARY))
        file = LogProbabilities(tmp_path / str(row), 1, PUBLISHED_VOCABULARY, write=True)
        file.write(0, expected)
        kept, _ = file.read(0)
        file.close()
        assert kl_divergence(kept, found) == pytest.approx(kl_divergence(expected, found), abs=1e-6)


def test_a_file_of_other_rows_is_refused(tmp_path: Path) -> None:
    """Cut short, of another vocabulary, or not there: an error with both sizes."""
    file = tmp_path / "file"
    file.write_bytes(bytes(nbytes_of(3, 50) - 1))
    for rows, vocabulary in ((3, 50), (3, 51), (2, 50)):
        with pytest.raises(EngineError, match="answer tokens of a vocabulary of"):
            LogProbabilities(file, rows, vocabulary)
    with pytest.raises(EngineError, match="has 0 bytes"):
        LogProbabilities(tmp_path / "missing", 3, 50)


def test_4600_tokens_of_a_published_vocabulary_take_two_bytes_each() -> None:
    """What the cache must hold for a set of ordinary size."""
    assert nbytes_of(4600, PUBLISHED_VOCABULARY) == pytest.approx(4600 * PUBLISHED_VOCABULARY * 2, rel=0.01)
