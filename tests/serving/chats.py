"""Chats on samples, and tokens by definition, for the tests of all engines."""

from collections.abc import Iterable
from typing import Any

from mcpmq.dataset import Sample
from mcpmq.families.images import open_image
from mcpmq.families.inputs import Inputs
from mcpmq.runners.runner import Logits
from mcpmq.serving.engine import ChatEngine, Completion, Message, Sampling, gather


def question(sample: Sample) -> list[Message]:
    """Return a chat with the prompt of a sample."""
    images = (open_image(sample.id, sample.image),) if sample.image else ()
    return [Message("user", (*images, sample.prompt))]


def ask(engine: ChatEngine, sample: Sample, **settings: Any) -> tuple[str, Completion]:
    """Return the answer to a sample."""
    return gather(engine.generate(question(sample), Sampling(**{"max_tokens": 40, **settings})))


def most_probable_tokens(_: Inputs, logits: Iterable[Logits]) -> list[int]:
    """A metric: the most probable token at every position of the answer, as evaluations compare them."""
    return [int(row.argmax()) for row in logits]
