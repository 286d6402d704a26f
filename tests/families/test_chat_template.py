"""Chat templates and their sandbox."""

import json
from pathlib import Path

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]


def template(folder: Path, source: object, **settings: object) -> ChatTemplate:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, **settings}))
    return ChatTemplate.open(folder)


def test_a_template_has_messages_and_special_tokens(tmp_path: Path) -> None:
    """The variables are the messages, the generation prompt flag and the special tokens of tokenizer_config.json."""
    source = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    source += "{% if add_generation_prompt %}>{% endif %}"
    rendered = template(tmp_path, source, bos_token={"content": "<s>"}, eos_token="</s>").render(HELLO)
    assert rendered == "<s>user:hello</s>>"


def test_whitespace_around_blocks_is_trimmed(tmp_path: Path) -> None:
    """A block on its own line adds no whitespace, as in transformers."""
    assert template(tmp_path, "{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}").render(
        HELLO
    ) == ("x\n")


def test_the_template_file_has_precedence(tmp_path: Path) -> None:
    """`chat_template.jinja` overrides tokenizer_config.json; `default` is used if there are several templates."""
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert template(tmp_path, named).render(HELLO) == "plain"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert template(tmp_path, named).render(HELLO) == "file"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}xxxxxxxx{% endfor %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 / 0 }}",
        "{{ missing.attribute }}",
        "{% include 'other' %}",
    ],
)
def test_unsafe_and_failing_templates_raise_an_error(tmp_path: Path, source: str) -> None:
    """Access to Python internals, unbounded output and template errors raise CheckpointError."""
    with pytest.raises(CheckpointError, match="chat template failed"):
        template(tmp_path, source).render(HELLO)


@pytest.mark.parametrize("source", ["{% for %}", None, [{"name": "tool_use", "template": "x"}], "x" * (1 << 19)])
def test_an_invalid_template_is_rejected_when_opened(tmp_path: Path, source: object) -> None:
    """A missing, invalid or very large template raises CheckpointError."""
    with pytest.raises(CheckpointError, match="template"):
        template(tmp_path, source)
