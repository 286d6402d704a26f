"""Greedy answers in any engine, with few forward passes: the engine verifies a draft of many tokens at once.

A pass returns the most probable token at every position of a draft. Tokens up to the first difference are accepted, and
the predictions after it are the next draft (Jacobi decoding, arXiv 2305.10427). The result is that of token-by-token
decoding. The first draft is the reference answer, whose predictions are known from the evaluation: a model that
reproduces it needs no pass. An answer ends before a placeholder of images or audio.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile

import numpy as np

from mcpmq.families.inputs import Inputs
from mcpmq.runners.runner import Logits, Runner

MAX_TOKENS, MAX_PASSES = 64, 32


@dataclass(frozen=True, slots=True)
class Budget:
    """The cost of all passes together, in tokens.

    tokens_per_pixel: tokens in the language model that cost as much as a pixel in the vision encoder.
    """

    tokens: float
    tokens_per_pixel: float = 0.0

    def cost(self, sample: Inputs) -> float:
        """Return the tokens that a pass of a sample costs, with those of its pixels."""
        pixels = sum(one.size // 3 for one in sample.slices)
        return len(sample.tokens) + self.tokens_per_pixel * pixels


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
    def answer(self) -> GreedyAnswer:
        return GreedyAnswer(tuple(self.accepted), self.complete)

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


def greedy_answers(
    runner: Runner, samples: Sequence[Inputs], predicted: Sequence[Sequence[int]], budget: Budget
) -> list[GreedyAnswer]:
    """Return the greedy last answer to the prompt of every sample.

    `predicted` are the most probable tokens at all positions of the reference answers. Passes end before they exceed
    the budget; the first samples are preferred, and other answers remain incomplete.
    """
    states, remaining = _first_states(samples, predicted), budget.tokens
    for _ in range(MAX_PASSES):
        chosen, inputs = list[_Decoding](), list[Inputs]()
        for state in states:
            if state.is_running and (cost := budget.cost(one := state.inputs())) <= remaining:
                remaining -= cost
                chosen.append(state)
                inputs.append(one)
        if not chosen:
            break
        for state, tokens in zip(chosen, runner.run(inputs, _argmax), strict=True):
            state.accept(tokens)
    return [state.answer for state in states]


def answers_without_passes(
    samples: Sequence[Inputs], predicted: Sequence[Sequence[int]], budget: Budget
) -> list[GreedyAnswer] | None:
    """Return the answers as `greedy_answers` if no pass would run, else None."""
    states = _first_states(samples, predicted)
    if any(state.is_running and budget.cost(state.inputs()) <= budget.tokens for state in states):
        return None
    return [state.answer for state in states]


def _first_states(samples: Sequence[Inputs], predicted: Sequence[Sequence[int]]) -> list[_Decoding]:
    return [_first_state(*pair) for pair in zip(samples, predicted, strict=True)]


def _first_state(sample: Inputs, predicted: Sequence[int]) -> _Decoding:
    """Return the state after the pass with the reference answer as draft, by its predictions."""
    answer = sample.tokens[sample.answer_start :].tolist()
    state = _Decoding(sample, answer[:MAX_TOKENS], answer[-1])
    state.accept(predicted[-len(answer) :][:MAX_TOKENS])  # those before are of earlier turns
    return state


def _argmax(_: Inputs, rows: Iterable[Logits]) -> list[int]:
    return [int(row.argmax()) for row in rows]
