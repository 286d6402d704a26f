"""Chat template of a checkpoint, rendered in a process with limits because it is untrusted code."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mcpmq.errors import CheckpointError
from mcpmq.families.special_tokens import TOKENIZER_CONFIG, named_special_tokens, read_tokenizer_config
from mcpmq.system.json_file import read_optional_json, read_text
from mcpmq.system.untrusted_template import TemplateFailedError, check_template, render_template

JINJA_FILE, JSON_FILE, FOLDER = "chat_template.jinja", "chat_template.json", "chat_templates"
PROCESSOR_CONFIG = "processor_config.json"
DEFAULT = "default"  # name of the template for chat among several
MAX_TEMPLATE_CHARACTERS = 1 << 18
TEMPLATE_VARIABLES = {
    "add_generation_prompt": True,
    "enable_thinking": False,
}  # dataset answers have no reasoning before them


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Renders chat messages as the prompt text of a model."""

    source: str
    special_tokens: Mapping[str, str]  # template variables such as `eos_token`

    @classmethod
    def open(cls, checkpoint: Path, default: str | None = None, default_tokens: Iterable[tuple[str, str]] = ()) -> Self:
        """Read the template of a checkpoint, else use `default`.

        `default_tokens` are the special tokens (name, text) that a template has if no file names others.

        Raises:
            CheckpointError: no template is found, or it is not valid.
        """
        source = read_chat_template(checkpoint) or default
        if source is None:
            hint = f"download `{JINJA_FILE}`, `{JSON_FILE}` or `{TOKENIZER_CONFIG}`"
            raise CheckpointError(f"`{checkpoint}` has no chat template", hint)
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise CheckpointError(
                f"the chat template in `{checkpoint}` has {len(source):,} characters, more than"
                f" {MAX_TEMPLATE_CHARACTERS:,}",
                "compare it with the published file",
            )
        try:
            check_template(source)
        except TemplateFailedError as error:
            message = f"the chat template in `{checkpoint}` is not valid: {error}"
            raise CheckpointError(message, "compare it with the published file") from error
        return cls(source, {**dict(default_tokens), **named_special_tokens(read_tokenizer_config(checkpoint))})

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render messages, followed by the generation prompt.

        Raises:
            CheckpointError: the template fails, or the sandbox or a limit rejects it.
        """
        variables = {**TEMPLATE_VARIABLES, **self.special_tokens, "messages": list(map(dict, messages))}
        try:
            return render_template(self.source, variables)
        except TemplateFailedError as error:
            raise CheckpointError(f"the chat template failed: {error}", "compare it with the published file") from error


@dataclass(frozen=True, slots=True)
class PartsTemplate:
    """A chat template that writes a placeholder for every image part; the placeholders become the texts of images."""

    template: ChatTemplate
    placeholder: str
    image_texts: Sequence[str]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render messages, followed by the generation prompt.

        Raises:
            CheckpointError: the template fails, or drops or repeats an image.
        """
        first, *others = self.template.render(messages).split(self.placeholder)
        if len(others) != len(self.image_texts):
            raise CheckpointError(
                f"the rendered prompt has {len(others)} of {len(self.image_texts)} images",
                "compare `chat_template` with the published template",
            )
        return first + "".join(text + other for text, other in zip(self.image_texts, others, strict=True))


def read_chat_template(folder: Path) -> str | None:
    """Return the chat template of a checkpoint or an artifact; None if no file has one.

    The order is that of processors in transformers: processor_config.json, chat_template.json, chat_template.jinja,
    tokenizer_config.json.

    Raises:
        CheckpointError: a file is invalid, or chat_template.json and chat_template.jinja are different.
    """
    found = _named(read_optional_json(folder / PROCESSOR_CONFIG), PROCESSOR_CONFIG)
    if found is None:
        found = _template_file(folder)
    return _named(read_optional_json(folder / TOKENIZER_CONFIG), TOKENIZER_CONFIG) if found is None else found


def _template_file(folder: Path) -> str | None:
    jinja, older = _jinja(folder / JINJA_FILE), _named(read_optional_json(folder / JSON_FILE), JSON_FILE)
    if jinja is not None and older is not None and jinja != older:
        raise CheckpointError(
            f"`{JSON_FILE}` and `{JINJA_FILE}` in `{folder}` are different templates",
            "remove one of them; processors of transformers read the first, tokenizers the second",
        )
    nested = f"{FOLDER}/{DEFAULT}.jinja"
    if jinja is None and (folder / nested).is_file():
        message = f"`{folder}` has the template `{nested}` but no `{JINJA_FILE}`"
        raise CheckpointError(message, f"move it to `{JINJA_FILE}`")
    return jinja if older is None else older


def _jinja(file: Path) -> str | None:
    if not file.is_file():
        return None
    source = read_text(file)
    if file.stat().st_size != len(source.encode()):
        raise CheckpointError(
            f"`{file}` begins with a byte order mark, which would be part of every prompt", "save it as plain UTF-8"
        )
    return re.sub("\r\n?", "\n", source)


def _named(config: Mapping[str, Any], file: str) -> str | None:
    """Return the template under the key `chat_template`: a text, or the default one of a list or table."""
    source = config.get("chat_template")
    if isinstance(source, list):
        templates = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == DEFAULT]
        source = templates[0].get("template") if templates else ""
    if isinstance(source, dict):
        source = source.get(DEFAULT, "")
    if source is not None and (not isinstance(source, str) or not source):
        raise CheckpointError(f"`{file}` has no default chat template", "compare it with the published file")
    return source
