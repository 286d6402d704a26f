"""Log-probabilities of answer tokens on disk: written by the original, read by each artifact compared with it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError

NUM_EXACT = 256  # most probable tokens of a row, stored as float32
STEPS_PER_NAT = 2048  # resolution of the other tokens in 16 bits; minimum -32 nats: a vocabulary of these sums to 2e-9
MIN_LOGPROB = -60_000.0  # nats: an impossible token has a large, finite loss


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return natural log-probabilities, float64 [vocab_size], clamped to at least `MIN_LOGPROB`."""
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller checks
        values -= values.max()
        values -= np.log(np.exp(values).sum())
    return np.maximum(values, MIN_LOGPROB, out=values)


class LogprobFile:
    """A file with one row per answer token, 2 bytes per token of the vocabulary.

    The most probable tokens are stored as float32, the others in equal steps of 16 bits, which keeps the error of a
    token's KL divergence below 1e-6 nats, also for flat distributions; float16 would have an error of 1e-5.
    """

    def __init__(self, file: Path, num_rows: int, vocab_size: int, *, write: bool = False) -> None:
        """Open a file of `num_rows` rows.

        Raises:
            EngineError: the file to read is missing or has another size.
        """
        self._row_type = _row_type(vocab_size)
        found, expected = file.stat().st_size if file.is_file() else 0, num_rows * self._row_type.itemsize
        if not write and found != expected:
            raise EngineError(
                f"`{file}` has {found:,} bytes, but {num_rows:,} answer tokens of a vocabulary of {vocab_size:,} take"
                f" {expected:,}",
                "the artifact must have the vocabulary of the original; if it does, measure again with `--no-cache`",
            )
        self._stream = file.open("w+b" if write else "rb", buffering=0)

    def write(self, row: int, logprobs: NDArray[np.float64]) -> None:
        """Write a row [vocab_size] of `log_softmax` values."""
        packed = np.zeros((), self._row_type)
        count = packed["top"].size
        top = np.argpartition(logprobs, -count)[-count:]
        top = top[np.lexsort((top, -logprobs[top]))]  # ties in the order of argmax: lowest id first
        packed["top"], packed["exact"] = top, logprobs[top]
        packed["rest"] = np.rint(np.minimum(-STEPS_PER_NAT * logprobs, np.iinfo(np.uint16).max))
        self._stream.seek(row * self._row_type.itemsize)
        self._stream.write(packed.tobytes())

    def read(self, row: int) -> tuple[NDArray[np.float64], int]:
        """Return a row, normalized again, and its most probable token."""
        self._stream.seek(row * self._row_type.itemsize)
        packed = np.frombuffer(self._stream.read(self._row_type.itemsize), self._row_type)[0]
        logprobs = packed["rest"] / -STEPS_PER_NAT
        logprobs[packed["top"]] = packed["exact"]
        logprobs -= np.log(np.exp(logprobs).sum())
        return logprobs, int(packed["top"][0])

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def logprobs_nbytes(num_tokens: int, vocab_size: int) -> int:
    """Return the file size of the log-probabilities of `num_tokens` answer tokens."""
    return num_tokens * _row_type(vocab_size).itemsize


def _row_type(vocab_size: int) -> np.dtype[Any]:
    count = min(NUM_EXACT, vocab_size)
    return np.dtype([("top", "<i4", (count,)), ("exact", "<f4", (count,)), ("rest", "<u2", (vocab_size,))])
