"""The shape every runner has."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.family import Inputs

Result = TypeVar("Result")
Logits: TypeAlias = NDArray[np.float32]  # [vocabulary]; may be the engine's own memory, good until the next ones come
Judge: TypeAlias = Callable[[Inputs, Iterable[Logits]], Result]


class Runner(Protocol):
    """A model in its real engine, loaded and ready."""

    notes: tuple[str, ...]  # what a reader of the figures must know, e.g. which samples saw other pixels

    def run(self, samples: Sequence[Inputs], judge: Judge[Result]) -> Iterator[Result]:
        """For every sample in order, what `judge` makes of it.

        The judge gets the logits that predict each token of `tokens[answer_start:]`, in order and one by one, so that
        no more of them need be in memory than the engine itself holds.
        """


@dataclass(frozen=True, slots=True)
class Phases:
    """What an application waits for, measured on one sample."""

    encode_seconds_per_slice: float  # 0 if the sample has no image
    prefill_tokens_per_second: float  # the prompt, slices already encoded
    decode_tokens_per_second: float  # the answer, token by token


@runtime_checkable
class AnswersByToken(Protocol):
    """A runner that keeps what it has read, as applications do, so that its phases can be told apart."""

    def phases(self, sample: Inputs) -> Phases:
        """Take the time of encoding the images, reading the prompt, and reading the answer token by token."""


class OpenRunner(Protocol):
    """Every module of this room has this function, `open_runner`."""

    def __call__(self, path: Path, threads: int) -> Runner: ...


def phases_of(sample: Inputs, encoding: float, prefilling: float, decoding: float) -> Phases:
    """From the seconds that each phase of a sample took."""
    answer = len(sample.tokens) - sample.answer_start
    return Phases(
        encode_seconds_per_slice=encoding / len(sample.slices) if sample.slices else 0.0,
        prefill_tokens_per_second=sample.answer_start / prefilling,
        decode_tokens_per_second=answer / decoding,
    )
