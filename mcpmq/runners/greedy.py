"""Greedy answers in any engine, with few forward passes: the engine verifies a draft of many tokens at once.

A pass returns the most probable token at every position of a draft. Tokens up to the first difference are accepted, and
the predictions after it are the next draft (Jacobi decoding, arXiv 2305.10427). The result is that of token-by-token
decoding; a model that reproduces the reference answer needs one pass. An answer ends before a placeholder of images or
audio.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile

import numpy as np

from mcpmq.families.inputs import Inputs
from mcpmq.runners.runner import Logits, Runner

MAX_TOKENS, MAX_PASSES = 64, 32
MIN_BUDGET = 1 << 14  # tokens of all passes together; large models take minutes for them


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """The tokens of an answer without the end of the turn; incomplete at a limit of tokens or passes."""

    tokens: tuple[int, ...]
    complete: bool


@dataclass
class _Decoding:
    sample: Inputs
    draft: list[int]  # begins with the reference answer
    end: int  # the token that ends the turn
    accepted: list[int] = field(default_factory=list)
    complete: bool = False
    is_stopped: bool = False  # at a placeholder of images or audio, which has no embedding of its own in an answer

    @property
    def is_running(self) -> bool:
        return not (self.complete or self.is_stopped) and len(self.accepted) < MAX_TOKENS

    @cached_property
    def placeholders(self) -> frozenset[int]:
        """The tokens in whose places the sample has embeddings of images and audio."""
        tokens, spans = self.sample.tokens.tolist(), (*self.sample.image_bounds, *self.sample.audio_bounds)
        return frozenset(token for begin, end in spans for token in tokens[begin:end])

    def inputs(self) -> Inputs:
        """Return the sample with the draft as its answer, after the accepted tokens."""
        start = self.sample.answer_start
        tokens = [*self.sample.tokens[:start].tolist(), *self.accepted, *self.draft]
        return replace(
            self.sample,
            tokens=np.array(tokens, np.int64),
            answer_start=start + len(self.accepted),
            earlier_answers=self.sample.earlier_answers[:0],
        )

    def accept(self, predicted: Sequence[int]) -> None:
        """Accept predictions up to the first difference from the draft; the others are the next draft."""
        for index, (token, drafted) in enumerate(zip(predicted, self.draft, strict=True)):
            if token == self.end:
                self.complete = True
                return
            if token in self.placeholders:
                self.is_stopped = True
                return
            self.accepted.append(token)
            if len(self.accepted) == MAX_TOKENS:
                return
            if token != drafted:
                self.draft = [*takewhile(self._is_text, predicted[index + 1 :]), self.end]
                return
        self.draft = [self.end]

    def _is_text(self, token: int) -> bool:
        return token not in self.placeholders


def greedy_answers(runner: Runner, samples: Sequence[Inputs], budget: int = MIN_BUDGET) -> list[GreedyAnswer]:
    """Return the greedy last answer to the prompt of every sample; no pass begins after `budget` tokens."""
    states = [
        _Decoding(one, one.tokens[one.answer_start :][:MAX_TOKENS].tolist(), int(one.tokens[-1])) for one in samples
    ]
    running = list(states)
    for _ in range(MAX_PASSES):
        running = [state for state in running if state.is_running]
        if not running or budget <= 0:
            break
        inputs = [state.inputs() for state in running]
        budget -= sum(len(one.tokens) for one in inputs)
        for state, predicted in zip(running, runner.run(inputs, _argmax), strict=True):
            state.accept(predicted)
    return [GreedyAnswer(tuple(state.accepted), state.complete) for state in states]


def _argmax(_: Inputs, rows: Iterable[Logits]) -> list[int]:
    return [int(row.argmax()) for row in rows]
