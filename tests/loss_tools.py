"""The losses of answer tokens in any runner."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.inputs import Inputs
from mcpmq.runners.logprobs import log_softmax
from mcpmq.runners.runner import Logits, Runner


def answer_losses(runner: Runner, samples: Sequence[Inputs]) -> list[NDArray[np.float64]]:
    """Return the negative log probability of every answer token of each sample, in nats."""
    return list(runner.run(samples, _losses))


def _losses(sample: Inputs, rows: Iterable[Logits]) -> NDArray[np.float64]:
    answer = sample.answer_tokens
    return np.array([-log_softmax(row)[token] for row, token in zip(rows, answer, strict=True)])
