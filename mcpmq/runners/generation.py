"""Generation of an answer, one token at a time."""

from collections.abc import Callable, Collection, Generator
from contextlib import closing
from dataclasses import replace
from typing import TypeAlias

from mcpmq.families.inputs import Inputs
from mcpmq.runners.runner import Logits

# Yields the logits after the prompt, then those after every token that is sent.
Predictions: TypeAlias = Generator[Logits, int, None]
Choose: TypeAlias = Callable[[Logits], int]


def without_answer(sample: Inputs) -> Inputs:
    """Return the prompt of a sample."""
    return replace(sample, tokens=sample.tokens[: sample.answer_start])


def greedy(logits: Logits) -> int:
    """Return the most probable token; the first of equals."""
    return int(logits.argmax())


def generate(
    predictions: Predictions, max_tokens: int, choose: Choose = greedy, stop: Collection[int] = ()
) -> Generator[int, None, None]:
    """Yield at most `max_tokens` tokens; a token of `stop` ends the answer and is not part of it."""
    with closing(predictions):
        logits = next(predictions)
        for number in range(1, max_tokens + 1):
            token = choose(logits)
            if token in stop:
                return
            yield token
            if number < max_tokens:
                logits = predictions.send(token)
