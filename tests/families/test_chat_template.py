"""The sandbox around a checkpoint's chat template."""

import json
from pathlib import Path

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]


def template(folder: Path, source: object, **settings: object) -> ChatTemplate:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, **settings}))
    return ChatTemplate.open(folder)


def test_messages_roles_and_special_tokens_reach_the_template(tmp_path: Path) -> None:
    """A template sees the messages, the generation prompt and the tokens named in the tokenizer's settings."""
    source = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    source += "{% if add_generation_prompt %}>{% endif %}"
    rendered = template(tmp_path, source, bos_token={"content": "<s>"}, eos_token="</s>").render(HELLO)
    assert rendered == "<s>user:hello</s>>"


def test_blocks_are_trimmed_as_transformers_trims_them(tmp_path: Path) -> None:
    """A block on a line of its own leaves no whitespace."""
    assert template(tmp_path, "{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}").render(
        HELLO
    ) == ("x\n")


def test_the_file_wins_over_the_settings_and_the_default_over_other_names(tmp_path: Path) -> None:
    """`chat_template.jinja` comes first; of several named templates the default one is taken."""
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
def test_what_a_sandbox_forbids_is_an_error_of_the_checkpoint(tmp_path: Path, source: str) -> None:
    """Reaching for Python, filling the memory and failing are refused with a clear error."""
    with pytest.raises(CheckpointError, match="chat template failed"):
        template(tmp_path, source).render(HELLO)


@pytest.mark.parametrize("source", ["{% for %}", None, [{"name": "tool_use", "template": "x"}], "x" * (1 << 19)])
def test_no_valid_template_is_refused_when_opened(tmp_path: Path, source: object) -> None:
    """A missing, broken or enormous template is found before any work."""
    with pytest.raises(CheckpointError, match="template"):
        template(tmp_path, source)
