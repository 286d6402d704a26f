"""Losses of every answer token, of any runner."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.family import Inputs
from mcpmq.runners.logprobs import log_softmax
from mcpmq.runners.runner import Logits, Runner


def losses_of(runner: Runner, samples: Sequence[Inputs]) -> list[NDArray[np.float64]]:
    """-log of the probability of each token of each sample's answer."""
    return list(runner.run(samples, _losses))


def _losses(sample: Inputs, rows: Iterable[Logits]) -> NDArray[np.float64]:
    answer = sample.tokens[sample.answer_start :]
    return np.array([-log_softmax(row)[token] for row, token in zip(rows, answer, strict=True)])
