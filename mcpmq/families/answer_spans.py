"""Places of the answers of earlier turns in a rendered prompt, found without knowledge of the chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Encoding

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_template import ChatTemplate, PartsTemplate

Span = tuple[int, int]  # begin and past-the-end
OPENED, CLOSED = "\ue000", "\ue001"  # private characters around the number of a placeholder
TEMPLATE_HINT = "compare `chat_template` with the published template"


def answer_characters(
    template: ChatTemplate | PartsTemplate,
    messages: Sequence[Mapping[str, Any]],
    prompt: str,
    end_of_turn: str,
    prefix: str = "",
) -> list[Span]:
    """Return the characters of every answer in a prompt that the template rendered from these messages.

    The template is rendered again with placeholders instead of the answers: the texts between them are those between
    the answers. An answer includes the prefix and the end of its turn, if the template writes them.

    Raises:
        CheckpointError: the template drops an answer, or renders the other messages differently.
    """
    numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not numbers:
        return []
    held = {number: f"{OPENED}{number}{CLOSED}" for number in numbers}
    others = [_with_content(one, held.get(number)) for number, one in enumerate(messages)]
    before, *between = _split(template.render(others), list(held.values()))
    spans, position = [], len(before) if prompt.startswith(before) else -1
    for text in between:
        end = prompt.find(text, position) if position >= 0 else -1
        if end <= position:
            raise CheckpointError("the chat template changes with the answers of earlier turns", TEMPLATE_HINT)
        begin = position - len(prefix) * prompt.endswith(prefix, 0, position)
        spans.append((begin, end + len(end_of_turn) * text.startswith(end_of_turn)))
        position = end + len(text)
    return spans


def _with_content(message: Mapping[str, Any], placeholder: str | None) -> Mapping[str, Any]:
    """Return a message with a placeholder as its content, as a text or as the only part."""
    if placeholder is None:
        return message
    has_parts = isinstance(message["content"], list)
    return {**message, "content": [{"type": "text", "text": placeholder}] if has_parts else placeholder}


def _split(text: str, placeholders: Sequence[str]) -> list[str]:
    """Split a text at placeholders, each of which it has once, in their order."""
    parts = []
    for placeholder in placeholders:
        if text.count(placeholder) != 1:
            raise CheckpointError("the chat template drops or repeats the answer of an earlier turn", TEMPLATE_HINT)
        part, _, text = text.partition(placeholder)
        parts.append(part)
    return [*parts, text]


def token_spans(encoding: Encoding, spans: Sequence[Span]) -> list[Span]:
    """Return the first and past-the-last token that begin inside of each span of characters.

    Raises:
        CheckpointError: an answer has no token of its own.
    """
    starts = [start for start, _ in encoding.offsets]
    found = []
    for begin, end in spans:
        inside = [index for index, start in enumerate(starts) if begin <= start < end]
        if not inside:
            raise CheckpointError("the tokenizer merges an answer with the text around it", TEMPLATE_HINT)
        found.append((inside[0], inside[-1] + 1))
    return found
