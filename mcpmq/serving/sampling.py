"""Choice of the next token: greedy, or sampled with temperature and top-p."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.runners.runner import Logits
from mcpmq.serving.engine import Sampling

Floats = NDArray[np.float64]


class Sampler:
    """Chooses tokens with the settings of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: Logits) -> int:
        """Return a token id.

        Raises:
            EngineError: the logits [vocab_size] are not finite.
        """
        if not np.isfinite(logits).all():
            raise EngineError("the logits are not finite", "weights or activations overflow in this engine")
        if self._temperature == 0:
            return int(logits.argmax())
        tokens, probabilities = nucleus(logits.astype(np.float64) / self._temperature, self._top_p)
        cumulative = probabilities.cumsum()
        chosen = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(tokens[min(chosen, len(tokens) - 1)])


def nucleus(logits: Floats, top_p: float) -> tuple[NDArray[np.intp], Floats]:
    """Return the most probable tokens whose probabilities sum up to `top_p`, at least one, and their probabilities.

    They are sorted by probability; the probabilities sum up to 1. Source: arXiv 1904.09751.
    """
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(log_softmax(logits[order]))
    count = 1 + int((probabilities.cumsum()[:-1] < top_p).sum())
    return order[:count], probabilities[:count] / probabilities[:count].sum()


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """Return log-probabilities float64 [vocab_size]."""
    shifted = logits.astype(np.float64) - logits.max()
    result: Floats = shifted - math.log(np.exp(shifted).sum())
    return result


def most_probable(logprobs: Floats, count: int) -> Sequence[int]:
    """Return the ids of the most probable tokens, in order."""
    ids: Sequence[int] = np.argsort(-logprobs, kind="stable")[:count].tolist()
    return ids
