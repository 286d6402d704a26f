"""Per-token metrics of an answer, computed while the engine runs, so that logits need not be kept."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import EngineError
from mcpmq.families.inputs import Inputs
from mcpmq.runners.logprobs import LogprobFile, log_softmax
from mcpmq.runners.runner import Logits


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """Comparison with a reference model, one value per answer token."""

    kl_divergences: list[float]  # KL(reference || this) over the vocabulary, in nats
    top1_match: list[bool]  # both models have the same most probable token


@dataclass(frozen=True, slots=True)
class TokenResults:
    """Metrics of one answer, one value per token."""

    losses: list[float]  # negative log-likelihood, in nats
    argmax_ids: list[int]  # the most probable token at each position, given the correct answer before it
    compared: dict[str, TokenComparison]  # by name of the reference model


class TokenMetrics:
    """A `Metric` over answer tokens; `seconds` is the time spent here, which is not the engine's."""

    def __init__(self, samples: Sequence[Inputs], save_logprobs: Path | None, references: Mapping[str, Path]) -> None:
        """Save log-probabilities to `save_logprobs`; compare with the files of `references`, by model name."""
        lengths = [len(sample.measured) for sample in samples]
        starts = np.cumsum([0, *lengths]).tolist()
        self._first_rows = {sample.id: start for sample, start in zip(samples, starts, strict=False)}
        self._num_rows, self._save_logprobs, self._references = sum(lengths), save_logprobs, references
        self._saved: LogprobFile | None = None
        self._reference_files: dict[str, LogprobFile] = {}
        self.seconds = 0.0

    def __call__(self, sample: Inputs, rows: Iterable[Logits]) -> TokenResults:
        """Return the metrics of every answer token of a sample.

        Raises:
            EngineError: a loss is not finite, rows are missing, or the vocabulary differs from that of a reference.
        """
        answer = sample.answer_tokens.tolist()
        results = TokenResults([], [], {name: TokenComparison([], []) for name in self._references})
        for index, (logits, token) in enumerate(zip(rows, answer, strict=False)):
            start = time.perf_counter()
            self._add_token(results, sample.id, index, logits, token)
            self.seconds += time.perf_counter() - start
        if (found := len(results.losses)) != len(answer):
            tokens = f"{found} token{'' if found == 1 else 's'}"
            raise EngineError(
                f"sample `{sample.id}`: logits of {tokens} for an answer of {len(answer)}", "export the artifact again"
            )
        return results

    def _add_token(self, results: TokenResults, sample_id: str, index: int, logits: Logits, token: int) -> None:
        if self._saved is None and not self._reference_files:
            self._open_files(len(logits))
        logprobs = log_softmax(logits)
        if not np.isfinite(logprobs[token]):
            raise EngineError(
                f"sample `{sample_id}`: the loss of token {index} is not finite",
                "the weights or activations overflow in this engine",
            )
        argmax = int(logprobs.argmax())
        results.losses.append(-float(logprobs[token]))
        results.argmax_ids.append(argmax)
        row = self._first_rows[sample_id] + index
        if self._saved:
            self._saved.write(row, logprobs)
        for name, file in self._reference_files.items():
            reference, reference_argmax = file.read(row)
            results.compared[name].kl_divergences.append(kl_divergence(reference, logprobs))
            results.compared[name].top1_match.append(argmax == reference_argmax)

    def _open_files(self, vocab_size: int) -> None:
        if self._save_logprobs:
            self._saved = LogprobFile(self._save_logprobs, self._num_rows, vocab_size, write=True)
        self._reference_files = {
            name: LogprobFile(file, self._num_rows, vocab_size) for name, file in self._references.items()
        }

    def close(self) -> None:
        """Close the log-probability files."""
        for file in (self._saved, *self._reference_files.values()):
            if file:
                file.close()


def kl_divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """Return KL(reference || candidate) in nats of two log-probability vectors [vocab_size]; never negative."""
    return max(0.0, float(np.exp(reference) @ (reference - candidate)))
