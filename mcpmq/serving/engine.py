"""The interface of chat engines: messages with images in, pieces of text out."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mcpmq.families.messages import Message

__all__ = [
    "MAX_TOKENS",
    "Answer",
    "ChatEngine",
    "Completion",
    "FinishReason",
    "Message",
    "Piece",
    "Sampling",
    "TokenLogprob",
    "gather",
]
MAX_TOKENS = 512  # of an answer, unless others are requested
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of one answer; the defaults are greedy decoding."""

    temperature: float = 0.0  # 0 takes the most probable token
    top_p: float = 1.0  # the most probable tokens whose probabilities sum up to it are sampled from
    seed: int | None = None  # equal seeds give equal answers; None for a new one
    max_tokens: int = MAX_TOKENS
    stop: tuple[str, ...] = ()  # texts that end the answer and are not part of it
    top_logprobs: int | None = None  # number of alternatives in `Piece.tokens`; None for no log-probabilities


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token and its log-probability before temperature and top-p, in nats; alternatives by probability."""

    token_id: int
    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of an answer: whole characters, possibly none, and its tokens if `top_logprobs` is set."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of an answer.

    `stop` is an end-of-turn token or a stop text; `length` is the limit of tokens or of the context. `prompt_ms` ends
    with the logits of the first token, and includes image encoding.
    """

    finish_reason: FinishReason
    prompt_tokens: int  # including image tokens
    completion_tokens: int  # including an end-of-turn token
    prompt_ms: float
    predicted_ms: float
    notes: tuple[str, ...] = ()  # differences from the original, e.g. image preprocessing of the engine

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of decoding, without the prompt."""
        return 1000 * self.completion_tokens / self.predicted_ms if self.predicted_ms > 0 else 0.0


Answer = Generator[Piece, None, Completion]


class ChatEngine(Protocol):
    """A loaded model that answers one chat at a time.

    It is used by one thread at a time. A generator that is closed ends its answer within one token.
    """

    @property
    def label(self) -> str:
        """Name and version of the engine, e.g. `ONNX Runtime 1.24.2`."""

    @property
    def context_length(self) -> int:
        """Maximum tokens of a chat and its answer."""

    @property
    def has_vision(self) -> bool:
        """True if the model accepts images."""

    @property
    def has_audio(self) -> bool:
        """True if the model accepts audio."""

    def generate(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """Yield the answer to the last message, and return its statistics.

        Work begins with the first `next`.

        Raises:
            DatasetError: the chat is longer than the context, has control tokens in its texts, or has an image or audio
                that the model does not accept.
            EngineError: the engine failed.
        """

    def close(self) -> None:
        """Free the memory; generators of the engine must be closed before."""


def gather(answer: Answer) -> tuple[str, Completion]:
    """Return the text of a whole answer and its statistics."""
    pieces = []
    while True:
        try:
            pieces.append(next(answer).text)
        except StopIteration as end:
            return "".join(pieces), end.value
