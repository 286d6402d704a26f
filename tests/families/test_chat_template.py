"""Chat templates and their sandbox."""

import json
from pathlib import Path

import pytest

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_template import ChatTemplate, read_chat_template

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


PLACES = {
    "processor_config.json": json.dumps({"chat_template": "A"}),
    "chat_template.json": json.dumps({"chat_template": "A"}),
    "chat_template.jinja": "A",
    "tokenizer_config.json": json.dumps({"chat_template": "A"}),
}
LISTED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "A"}]


@pytest.mark.parametrize("place", PLACES)
def test_the_template_is_found_in_any_file(place: str, tmp_path: Path) -> None:
    """Each file alone is enough, and a file of lower precedence with another template does not count."""
    (tmp_path / place).write_text(PLACES[place])
    assert read_chat_template(tmp_path) == "A"
    for other in list(PLACES)[list(PLACES).index(place) + 1 :]:
        if {place, other} != {"chat_template.json", "chat_template.jinja"}:
            (tmp_path / other).write_text(PLACES[other].replace("A", "B"))
            assert read_chat_template(tmp_path) == "A"


@pytest.mark.parametrize("source", [LISTED, {"default": "A", "tool_use": "tools"}])
@pytest.mark.parametrize("place", ["processor_config.json", "chat_template.json", "tokenizer_config.json"])
def test_the_default_of_several_templates_is_used(place: str, source: object, tmp_path: Path) -> None:
    """Named templates are a list in older files and a table in newer ones."""
    (tmp_path / place).write_text(json.dumps({"chat_template": source}))

    assert read_chat_template(tmp_path) == "A"


def test_no_template_is_found_in_files_without_one(tmp_path: Path) -> None:
    """Missing files and null values count as none; the family's own template is used then."""
    for place in ("processor_config.json", "chat_template.json", "tokenizer_config.json"):
        (tmp_path / place).write_text(json.dumps({"chat_template": None}))

    assert read_chat_template(tmp_path) is None
    assert ChatTemplate.open(tmp_path, "own").render(HELLO) == "own"
    with pytest.raises(CheckpointError, match="no chat template"):
        ChatTemplate.open(tmp_path)


def test_two_files_with_different_templates_are_rejected(tmp_path: Path) -> None:
    """Processors of transformers read chat_template.json, tokenizers chat_template.jinja; both are named."""
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "A\n"}))
    (tmp_path / "chat_template.jinja").write_bytes(b"A\r\n")
    assert read_chat_template(tmp_path) == "A\n"
    (tmp_path / "chat_template.jinja").write_text("B\n")

    with pytest.raises(CheckpointError, match=r"chat_template\.json.*chat_template\.jinja.*different"):
        read_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", b"\xef\xbb\xbf{{ messages }}", "byte order mark"),
        ("chat_template.jinja", b"\xff\xfe{\x00", "byte order mark"),
        ("chat_template.jinja", b"{{ messages }}\xff", "not Unicode"),
        ("chat_template.json", b'{"chat_template": 5}', "no default chat template"),
        ("tokenizer_config.json", b'{"chat_template": ["A"]}', "no default chat template"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": ["default"]}]}', "no default chat template"),
        ("chat_templates/default.jinja", b"A", "move it|no `chat_template.jinja`"),
    ],
)
def test_invalid_template_files_are_rejected(file: str, content: bytes, message: str, tmp_path: Path) -> None:
    """The error names the file, with a hint."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)

    with pytest.raises(CheckpointError, match=message) as caught:
        read_chat_template(tmp_path)
    assert caught.value.hint


def test_special_tokens_of_all_files_are_variables(tmp_path: Path) -> None:
    """special_tokens_map.json adds to tokenizer_config.json, and the tokens of the tokenizer class are the default."""
    source = "{{ bos_token }} {{ eos_token }} {{ pad_token }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": source, "bos_token": "<s>"}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))

    defaults = (("eos_token", "<end>"), ("pad_token", "<pad>"))

    assert ChatTemplate.open(tmp_path, default_tokens=defaults).render(HELLO) == "<s> </s> <pad>"


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


def test_a_template_without_end_raises_an_error(tmp_path: Path) -> None:
    """A loop without output is ended by the limit of processor time."""
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(CheckpointError, match="chat template failed: it takes more than 2 seconds of") as caught:
        template(tmp_path, source).render(HELLO)
    assert caught.value.hint


@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s=['x']) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{{ 'x'.ljust(9000000000) }}",
        "{{ '%9000000000d' % 1 }}",
        "{{ 'x' | center(9000000000) }}",
        "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
    ],
)
def test_a_template_that_exhausts_the_memory_raises_an_error(source: str, tmp_path: Path) -> None:
    """Concatenation, padding, formatting and replacement have a limit of 512 MiB; the next template is rendered."""
    with pytest.raises(CheckpointError, match="needs more than 512 MiB|exceeds the memory limit"):
        template(tmp_path, source).render(HELLO)
    assert template(tmp_path, "A").render(HELLO) == "A"


@pytest.mark.parametrize("source", ["{% for %}", None, [{"name": "tool_use", "template": "x"}], "x" * (1 << 19)])
def test_an_invalid_template_is_rejected_when_opened(tmp_path: Path, source: object) -> None:
    """A missing, invalid or very large template raises CheckpointError."""
    with pytest.raises(CheckpointError, match="template"):
        template(tmp_path, source)
