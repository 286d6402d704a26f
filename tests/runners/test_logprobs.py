"""Log-probability files: precision, order of rows and size checks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmq.errors import EngineError
from mcpmq.runners.logprobs import LogprobFile, log_softmax, logprobs_nbytes
from mcpmq.runners.token_metrics import kl_divergence

PUBLISHED_VOCABULARY = 151_666


def test_log_softmax_matches_its_definition() -> None:
    """Large logits do not overflow; -inf becomes -60,000 nats; inf gives NaN."""
    logits = np.array([1000, 1001, 999], np.float32)
    np.testing.assert_allclose(log_softmax(logits), logits - 1000 - np.log(1 + np.exp(1) + np.exp(-1)), rtol=1e-12)
    assert log_softmax(np.array([0, -np.inf], np.float32)).tolist() == [0, -60_000]
    assert np.isnan(log_softmax(np.array([0, np.inf], np.float32))).all()


@given(st.integers(1, 2**32 - 1), st.integers(1, 400), st.integers(1, 5), st.sampled_from([0.0, 0.1, 3.0, 9.0]))
@settings(max_examples=60, deadline=None)
def test_rows_are_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, vocabulary: int, rows: int, spread: float
) -> None:
    """Rows are normalized and close to the written ones; the top token is exact, the lowest id among equals."""
    random, file = np.random.default_rng(seed), tmp_path_factory.mktemp("rows") / "file"
    written = [log_softmax(np.round(spread * random.normal(size=vocabulary), 1)) for _ in range(rows)]
    writer = LogprobFile(file, rows, vocabulary, write=True)
    for row in random.permutation(rows).tolist():
        writer.write(row, written[row])
    writer.close()
    reader = LogprobFile(file, rows, vocabulary)
    for row in random.permutation(rows).tolist():
        values, top = reader.read(row)
        assert top == written[row].argmax()
        np.testing.assert_allclose(np.maximum(values, -32), np.maximum(written[row], -32), atol=5e-4)
        assert np.exp(values).sum() == pytest.approx(1, abs=1e-12)
    reader.close()
    assert file.stat().st_size == logprobs_nbytes(rows, vocabulary)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_stored_rows_give_the_divergence_to_a_millionth_nat(spread: float, noise: float, tmp_path: Path) -> None:
    """The error stays below 1e-6 nats for a published vocabulary size, flat and peaked distributions."""
    random = np.random.default_rng(0)
    for row in range(3):
        logits = random.normal(0, spread, PUBLISHED_VOCABULARY)
        reference = log_softmax(logits)
        candidate = log_softmax(logits + random.normal(0, noise, PUBLISHED_VOCABULARY))
        file = LogprobFile(tmp_path / str(row), 1, PUBLISHED_VOCABULARY, write=True)
        file.write(0, reference)
        stored, _ = file.read(0)
        file.close()
        assert kl_divergence(stored, candidate) == pytest.approx(kl_divergence(reference, candidate), abs=1e-6)


def test_a_file_of_another_size_is_an_error(tmp_path: Path) -> None:
    """A truncated file, another vocabulary, another number of rows and a missing file are errors with both sizes."""
    file = tmp_path / "file"
    file.write_bytes(bytes(logprobs_nbytes(3, 50) - 1))
    for rows, vocabulary in ((3, 50), (3, 51), (2, 50)):
        with pytest.raises(EngineError, match="answer tokens of a vocabulary of"):
            LogprobFile(file, rows, vocabulary)
    with pytest.raises(EngineError, match="has 0 bytes"):
        LogprobFile(tmp_path / "missing", 3, 50)


def test_a_row_takes_two_bytes_per_vocabulary_token() -> None:
    """A set of 4,600 answer tokens and a vocabulary of 151,666 tokens takes about 1.4 GB."""
    assert logprobs_nbytes(4600, PUBLISHED_VOCABULARY) == pytest.approx(1.395e9, rel=0.01)
