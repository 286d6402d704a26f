"""What is kept of an answer's logits, while the engine runs: a few figures for each of its tokens."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.families.family import Inputs
from mcpmq.runners.logprobs import LogProbabilities, log_softmax
from mcpmq.runners.runner import Logits


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of every token of one answer, how far the model is from another one."""

    kl_divergences: list[float]  # KL(other || this) over the vocabulary, in nats
    same_top: list[bool]  # both take the same token for the likeliest


@dataclass(frozen=True, slots=True)
class Judged:
    """Of every token of one answer."""

    losses: list[float]  # -log of its probability
    likeliest: list[int]  # the token that greedy decoding takes there, given the answer so far
    compared: dict[str, Comparison]  # with the model of that name


class TokenJudge:
    """Judges one answer after another; `seconds` is what that took, which is not the engine's time."""

    def __init__(self, samples: Sequence[Inputs], keep: Path | None, against: Mapping[str, Path]) -> None:
        """Write log-probabilities to `keep`; compare with those in the files `against`, by the name of their model."""
        lengths = [len(sample.tokens) - sample.answer_start for sample in samples]
        starts = np.cumsum([0, *lengths]).tolist()
        self._first_rows = {sample.id: start for sample, start in zip(samples, starts, strict=False)}
        self._rows, self._keep, self._against = sum(lengths), keep, against
        self._kept: LogProbabilities | None = None
        self._others: dict[str, LogProbabilities] = {}
        self.seconds = 0.0

    def __call__(self, sample: Inputs, rows: Iterable[Logits]) -> Judged:
        """Figures of every token of the sample's answer.

        Raises:
            EngineError: a loss is not finite, there are too few, or the vocabulary is not the other models'.
        """
        answer = sample.tokens[sample.answer_start :].tolist()
        judged = Judged([], [], {name: Comparison([], []) for name in self._against})
        for index, (logits, token) in enumerate(zip(rows, answer, strict=False)):
            start = time.perf_counter()
            self._judge(judged, sample.id, index, logits, token)
            self.seconds += time.perf_counter() - start
        if len(judged.losses) != len(answer):
            raise EngineError(
                f"sample `{sample.id}`: logits of {len(judged.losses)} tokens for an answer of {len(answer)}"
            )
        return judged

    def _judge(self, judged: Judged, sample_id: str, index: int, logits: Logits, token: int) -> None:
        if self._kept is None and not self._others:
            self._open(len(logits))
        values = log_softmax(logits)
        if not np.isfinite(values[token]):
            raise EngineError(
                f"sample `{sample_id}`: the loss of token {index} is not finite",
                "the weights or activations overflow in this engine",
            )
        top = int(values.argmax())
        judged.losses.append(-float(values[token]))
        judged.likeliest.append(top)
        row = self._first_rows[sample_id] + index
        if self._kept:
            self._kept.write(row, values)
        for name, other in self._others.items():
            expected, other_top = other.read(row)
            judged.compared[name].kl_divergences.append(kl_divergence(expected, values))
            judged.compared[name].same_top.append(top == other_top)

    def _open(self, vocabulary: int) -> None:
        if self._keep:
            self._kept = LogProbabilities(self._keep, self._rows, vocabulary, write=True)
        self._others = {name: LogProbabilities(file, self._rows, vocabulary) for name, file in self._against.items()}

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._kept, *self._others.values()):
            if file:
                file.close()


def kl_divergence(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """KL(expected || found) in nats, of distributions given as log-probabilities [vocabulary]; never negative."""
    return max(0.0, float(np.exp(expected) @ (expected - found)))
