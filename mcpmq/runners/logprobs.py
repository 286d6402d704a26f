"""Log-probabilities of every answer token on disk: written once by the original, read beside every artifact."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError

TOP = 256  # likeliest tokens of a row that are kept in float32
STEPS = 2048  # a nat, for the others, in 16 bits: down to -32 nats, where a whole vocabulary weighs 2e-9
LEAST = -60_000.0  # nats: a token that cannot come costs much, not more than any number


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logits [vocabulary] -> natural logarithms of probabilities, float64, none below `LEAST`."""
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities none is a number, which whoever asked will see
        values -= values.max()
        values -= np.log(np.exp(values).sum())
    return np.maximum(values, LEAST, out=values)


class LogProbabilities:
    """A file of rows, one an answer token, 2 bytes a token of the vocabulary.

    With the likeliest in float32 and the others in equal steps the Kullback-Leibler divergence of a token is exact to
    1e-6 nat, also where thousands of tokens are as likely; all in float16 it would be off by 1e-5.
    """

    def __init__(self, file: Path, rows: int, vocabulary: int, *, write: bool = False) -> None:
        """Open a file of so many rows.

        Raises:
            EngineError: it is missing, or has other rows.
        """
        self._type = _row_type(vocabulary)
        found = file.stat().st_size if file.is_file() else 0
        if not write and found != rows * self._type.itemsize:
            raise EngineError(
                f"`{file}` has {found:,} bytes; {rows:,} answer tokens of a vocabulary of {vocabulary:,} would take"
                f" {rows * self._type.itemsize:,}",
                "an artifact must have the vocabulary of the original; if it has, measure again with `--no-cache`",
            )
        self._stream = file.open("w+b" if write else "rb", buffering=0)

    def write(self, row: int, values: NDArray[np.float64]) -> None:
        """Keep a row [vocabulary] that `log_softmax` gave."""
        packed = np.zeros((), self._type)
        count = packed["top"].size
        likely = np.argpartition(values, -count)[-count:]
        likely = likely[np.lexsort((likely, -values[likely]))]  # the first of equals comes first, as in argmax
        packed["top"], packed["exact"] = likely, values[likely]
        packed["rest"] = np.rint(np.minimum(-STEPS * values, np.iinfo(np.uint16).max))
        self._stream.seek(row * self._type.itemsize)
        self._stream.write(packed.tobytes())

    def read(self, row: int) -> tuple[NDArray[np.float64], int]:
        """A row as it was written, normalised again, and its likeliest token."""
        self._stream.seek(row * self._type.itemsize)
        packed = np.frombuffer(self._stream.read(self._type.itemsize), self._type)[0]
        values = packed["rest"] / -STEPS
        values[packed["top"]] = packed["exact"]
        values -= np.log(np.exp(values).sum())
        return values, int(packed["top"][0])

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()


def nbytes_of(tokens: int, vocabulary: int) -> int:
    """What the log-probabilities of so many answer tokens take."""
    return tokens * _row_type(vocabulary).itemsize


def _row_type(vocabulary: int) -> np.dtype[Any]:
    top = min(TOP, vocabulary)
    return np.dtype([("top", "<i4", (top,)), ("exact", "<f4", (top,)), ("rest", "<u2", (vocabulary,))])
