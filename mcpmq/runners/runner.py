"""The interface of all runners."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.inputs import Inputs

Result = TypeVar("Result")
SliceEmbeddings: TypeAlias = list[NDArray[np.float32]]  # one [tokens, hidden_size] array per slice, in order
Logits: TypeAlias = NDArray[np.float32]  # [vocab_size]; may be engine memory that the next row overwrites
Metric: TypeAlias = Callable[[Inputs, Iterable[Logits]], Result]


class Runner(Protocol):
    """A model loaded into its engine."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts that a reader of the results needs, e.g. which samples had resized slices."""

    def run(self, samples: Sequence[Inputs], metric: Metric[Result]) -> Iterator[Result]:
        """Yield `metric(sample, logits)` for each sample, in order.

        `logits` yields one row per token of `answer_tokens`, each row the prediction of that token. The rows
        are streamed, so only the rows that the engine itself holds are in memory.
        """


@dataclass(frozen=True, slots=True)
class PhaseTimings:
    """Speed of image encoding, prefill and decode, measured on one sample."""

    encode_seconds_per_slice: float  # 0 if the sample has no image
    prefill_tokens_per_second: float  # the prompt, with slices already encoded
    decode_tokens_per_second: float  # the answer, token by token


@runtime_checkable
class SupportsPhases(Protocol):
    """A runner with a KV cache, which can time prefill and decode separately."""

    def time_phases(self, sample: Inputs) -> PhaseTimings:
        """Time image encoding, prefill, and token-by-token decode of the answer."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of a runner module's `open_runner`; those that are not set are not passed to it."""

    adapters: tuple[str, ...] = ()  # folders of LoRA adapters, merged into a checkpoint by the `torch` runner
    kv_cache: str | None = None  # types of the KV cache of the `gguf` runner
    device: str | None = None  # of the `torch` runner, by default the CPU

    def keywords(self) -> dict[str, Any]:
        """Return the arguments of `open_runner` for the options that are set."""
        return {name: value for name, value in asdict(self).items() if value}


class OpenRunner(Protocol):
    """The signature of `open_runner`, which every runner module defines, with its options."""

    def __call__(self, path: Path, threads: int, **options: Any) -> Runner: ...


class SequentialEngine(Protocol):
    """A runner module that can free the vision encoder before it loads the language model."""

    def encode_images(self, path: Path, threads: int, samples: Sequence[Inputs]) -> SliceEmbeddings:
        """Load the vision encoder, encode every slice, and free the encoder."""

    def open_language_model(self, path: Path, threads: int, embeddings: SliceEmbeddings, **options: Any) -> Runner:
        """Load the language model alone; the runner takes the slices' embeddings from `embeddings`, in order."""


def phase_timings(sample: Inputs, encode_seconds: float, prefill_seconds: float, decode_seconds: float) -> PhaseTimings:
    """Convert the duration of each phase of a sample into speeds."""
    answer_tokens = len(sample.tokens) - sample.answer_start
    return PhaseTimings(
        encode_seconds_per_slice=encode_seconds / len(sample.slices) if sample.slices else 0.0,
        prefill_tokens_per_second=sample.answer_start / prefill_seconds,
        decode_tokens_per_second=answer_tokens / decode_seconds,
    )
