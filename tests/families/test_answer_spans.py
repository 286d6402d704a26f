"""Places of the answers of a conversation, for templates that change texts."""

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.answer_spans import answer_characters
from mcpmq.families.chat_template import ChatTemplate

CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ CONTENT }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _spans(content: str, texts: list[str]) -> list[str]:
    """Return the parts of a rendered prompt that are found for answers; `content` is the expression of the template."""
    template = ChatTemplate(CHAT.replace("CONTENT", content), {})
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    prompt = template.render(messages)
    return [prompt[start:end] for start, end in answer_characters(template, messages, prompt, "<end>")]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("message.content", " a\n"),
        ("message.content | trim", "a"),
        ("message.content.split('b')[-1]", " a\n"),
        ("message.content ~ '!'", " a\n"),
    ],
)
def test_templates_may_change_the_text_of_answers(content: str, answer: str) -> None:
    """The span is the text in the prompt, without the additions of the template to every message."""
    end = "" if "!" in content else "<end>"

    assert _spans(content, ["q", " a\n", "q", " a\n", "q"]) == [answer + end, answer + end]
    assert _spans(content, ["q"]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("message.content * 2", "drops or repeats"),
        ("'' if message.role == 'assistant' else message.content", "drops or repeats"),
        ("message.content ~ messages[1].content | length", "changes with the answers"),
        ("message.content | replace('a', '')", "changes with the answers"),
    ],
)
def test_templates_without_a_place_for_each_answer_are_rejected(content: str, message: str) -> None:
    """An answer that is dropped, written twice, or used elsewhere has no span."""
    with pytest.raises(CheckpointError, match=message):
        _spans(content, ["q", "a", "q"])
