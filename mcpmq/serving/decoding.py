"""A chat engine over a model that predicts one token at a time, with the tokenizer and images of the original."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mcpmq.errors import DatasetError
from mcpmq.families.family import Family, Processor
from mcpmq.families.inputs import Inputs
from mcpmq.families.special_tokens import end_token_ids, named_special_tokens, read_tokenizer_config
from mcpmq.runners.generation import Predictions, generate
from mcpmq.runners.runner import Logits
from mcpmq.serving.engine import Answer, Completion, Message, Piece, Sampling, TokenLogprob
from mcpmq.serving.sampling import Sampler, log_softmax, most_probable
from mcpmq.serving.text_stream import TextStream


def _do_nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class DecodingEngine:
    """Encodes chats with a processor, and samples from the predictions of a runner.

    Attributes:
        predict: (prompt, maximum tokens) -> predictions.
        stop_ids: token ids that end an answer.
    """

    label: str
    processor: Processor
    predict: Callable[[Inputs, int], Predictions]
    stop_ids: frozenset[int]
    context_length: int
    has_vision: bool
    has_audio: bool
    notes: tuple[str, ...] = ()
    close: Callable[[], None] = field(default=_do_nothing)

    def generate(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """Yield the answer to the last message, and return its statistics; see `ChatEngine`."""
        started = time.perf_counter()
        prompt = self.processor.encode_chat(messages)
        limit = min(sampling.max_tokens, self.context_length - len(prompt.tokens))
        if limit < 1:
            raise context_overflow(len(prompt.tokens), self.context_length)
        choice = _Choice(Sampler(sampling), sampling.top_logprobs)
        stream = TextStream(self.processor.tokenizer, frozenset(self.processor.special_tokens.values()), sampling.stop)
        tokens = generate(self.predict(prompt, limit), limit, choice, self.stop_ids)
        count, ended_turn = 0, False
        with closing(tokens):
            for token in tokens:
                count += 1
                text = stream.push(token)
                if text or choice.logprobs:
                    yield Piece(text, self._logprobs(choice))
                if stream.stopped:
                    break
            ended_turn = choice.last in self.stop_ids
        if rest := stream.finish():
            yield Piece(rest)
        ended = time.perf_counter()
        first = choice.first_at or ended
        return Completion(
            finish_reason="stop" if ended_turn or stream.stopped else "length",
            prompt_tokens=len(prompt.tokens),
            completion_tokens=count + ended_turn,
            prompt_ms=1000 * (first - started),
            predicted_ms=1000 * (ended - first),
            notes=self.notes,
        )

    def _logprobs(self, choice: "_Choice") -> tuple[TokenLogprob, ...]:
        found = [
            TokenLogprob(token, self._text(token), value, tuple((self._text(other), p) for other, p in alternatives))
            for token, value, alternatives in choice.logprobs
        ]
        choice.logprobs.clear()
        return tuple(found)

    def _text(self, token: int) -> str:
        text: str = self.processor.tokenizer.decode([token], skip_special_tokens=False)
        return text


class _Choice:
    """Samples tokens and records the time of the first one, the last one, and log-probabilities on request."""

    def __init__(self, sampler: Sampler, top_logprobs: int | None) -> None:
        self._sampler, self._top_logprobs = sampler, top_logprobs
        self.first_at: float | None = None
        self.last = -1
        self.logprobs: list[tuple[int, float, list[tuple[int, float]]]] = []

    def __call__(self, logits: Logits) -> int:
        self.first_at = self.first_at or time.perf_counter()
        self.last = self._sampler(logits)
        if self._top_logprobs is not None:
            logprobs = log_softmax(logits)
            alternatives = [(token, float(logprobs[token])) for token in most_probable(logprobs, self._top_logprobs)]
            self.logprobs.append((self.last, float(logprobs[self.last]), alternatives))
        return self.last


def context_overflow(prompt_tokens: int, context_length: int) -> DatasetError:
    """Return the error for a chat that leaves no space for an answer."""
    return DatasetError(
        f"the chat has {prompt_tokens:,} tokens; a context of {context_length:,} leaves no space for an answer",
        "start a new chat, give fewer or smaller images, or set a longer `--context`",
    )


def decoding_engine(
    label: str,
    family: Family,
    folder: Path,
    predict: Callable[[Inputs, int], Predictions],
    *,
    context: int,
    notes: tuple[str, ...] = (),
    close: Callable[[], None] = _do_nothing,
) -> DecodingEngine:
    """Return the engine of a runner with the tokenizer, template and preprocessor files of a folder.

    Raises:
        CheckpointError: a file is missing or invalid.
    """
    processor = family.open_processor(folder)
    ends = {family.prompt_format.end_of_turn}
    if (named := named_special_tokens(read_tokenizer_config(folder)).get("eos_token")) is not None:
        ends.add(named)
    ids = (processor.tokenizer.token_to_id(token) for token in ends)
    stop_ids = frozenset((*(number for number in ids if number is not None), *end_token_ids(folder)))
    context = min(context, processor.context_length)
    accepts = family.has_vision, family.has_audio
    return DecodingEngine(label, processor, predict, stop_ids, context, *accepts, notes, close)
