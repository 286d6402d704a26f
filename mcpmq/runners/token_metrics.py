"""Per-token metrics of an answer, computed while the engine runs, so that logits need not be kept."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

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
    removed_probability: list[float] = field(default_factory=list)  # of tokens that only the reference has


@dataclass(frozen=True, slots=True)
class TokenResults:
    """Metrics of one answer, one value per token."""

    losses: list[float]  # negative log-likelihood, in nats
    argmax_ids: list[int]  # the most probable token at each position, given the correct answer before it
    compared: dict[str, TokenComparison]  # by name of the reference model


@dataclass(frozen=True, slots=True)
class ReferenceVocabulary:
    """The vocabulary of reference models, for a model with a part of it.

    Attributes:
        size: tokens of the reference.
        kept_ids: int64 [tokens of the model], the id in the reference of each token.
        first_rows: int64 [samples], the first row of each sample in the files of references; -1 for a sample with other
            tokens, which is not compared.
        num_rows: rows of these files.
    """

    size: int
    kept_ids: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    num_rows: int

    def save(self, file: Path) -> None:
        """Write the file that `load` reads."""
        sizes = np.array([self.size, self.num_rows])
        np.savez(file, sizes=sizes, kept_ids=self.kept_ids, first_rows=self.first_rows)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a file of `save`."""
        with np.load(file, allow_pickle=False) as arrays:
            size, num_rows = arrays["sizes"].tolist()
            return cls(size, arrays["kept_ids"], arrays["first_rows"], num_rows)

    @property
    def same_tokens(self) -> list[bool]:
        """Return for each sample whether it has the tokens of the reference."""
        return [row >= 0 for row in self.first_rows.tolist()]


class TokenMetrics:
    """A `Metric` over answer tokens; `seconds` is the time spent here, which is not the engine's."""

    def __init__(
        self,
        samples: Sequence[Inputs],
        save_logprobs: Path | None,
        references: Mapping[str, Path],
        vocabulary: ReferenceVocabulary | None = None,
    ) -> None:
        """Save log-probabilities to `save_logprobs`; compare with the files of `references`, by model name.

        With a `vocabulary` of the references, ids in the results are those of the references.
        """
        lengths = [len(sample.measured) for sample in samples]
        starts = np.cumsum([0, *lengths]).tolist() if vocabulary is None else vocabulary.first_rows.tolist()
        self._first_rows = {sample.id: start for sample, start in zip(samples, starts, strict=False)}
        self._num_rows = sum(lengths) if vocabulary is None else vocabulary.num_rows
        self._save_logprobs, self._references, self._vocabulary = save_logprobs, references, vocabulary
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
        argmax = argmax if self._vocabulary is None else int(self._vocabulary.kept_ids[argmax])
        results.losses.append(-float(logprobs[token]))
        results.argmax_ids.append(argmax)
        if self._first_rows[sample_id] < 0:  # other tokens than the references
            return
        row = self._first_rows[sample_id] + index
        if self._saved:
            self._saved.write(row, logprobs)
        for name, file in self._reference_files.items():
            reference, reference_argmax = file.read(row)
            compared = results.compared[name]
            if self._vocabulary:
                reference, kept = restricted(reference, self._vocabulary.kept_ids)
                compared.removed_probability.append(max(0.0, 1 - kept))
            compared.kl_divergences.append(kl_divergence(reference, logprobs))
            compared.top1_match.append(argmax == reference_argmax)

    def _open_files(self, vocab_size: int) -> None:
        vocab_size = self._vocabulary.size if self._vocabulary else vocab_size
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


def restricted(logprobs: NDArray[np.float64], kept_ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Return the log-probabilities of some tokens, given that one of them follows, and their probability."""
    kept = logprobs[kept_ids]
    probability = float(np.exp(kept).sum())
    return kept - np.log(probability), probability


def kl_divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """Return KL(reference || candidate) in nats of two log-probability vectors [vocab_size]; never negative."""
    return max(0.0, float(np.exp(reference) @ (reference - candidate)))
