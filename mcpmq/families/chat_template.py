"""A checkpoint's own chat template, rendered in a sandbox: it is a program that came with untrusted files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, Self

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mcpmq.errors import CheckpointError
from mcpmq.system.json_file import read_json

LARGEST_TEMPLATE_CHARACTERS = 1 << 18
LARGEST_TEXT_CHARACTERS = 1 << 22
LARGEST_PRODUCT = 1 << 20
SETTINGS = {"add_generation_prompt": True, "enable_thinking": False}  # answers are measured, not thoughts before them


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses what would fill the memory: large repetitions and powers."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        weights = [len(value) if isinstance(value, str | list | tuple) else abs(value) for value in (left, right)]
        if operator == "**" or weights[0] * weights[1] > LARGEST_PRODUCT:
            raise TemplateError(f"`{operator}` of values this large")
        return super().call_binop(context, operator, left, right)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How messages become the text that the model was trained on."""

    template: Template
    special_tokens: Mapping[str, str]  # `eos_token` and its like, which templates may name

    @classmethod
    def open(cls, checkpoint: Path, default: str | None = None) -> Self:
        """Read `chat_template.jinja`, or `chat_template` in chat_template.json or tokenizer_config.json; where there is
        none, take the `default`.

        Raises:
            CheckpointError: there is none, or it is no valid template.
        """
        config = read_json(checkpoint / "tokenizer_config.json")
        source = _source(checkpoint, {"chat_template": default, **config})
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _raise
        if len(source) > LARGEST_TEMPLATE_CHARACTERS:
            raise CheckpointError(f"the chat template in `{checkpoint}` has {len(source):,} characters")
        try:
            template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise CheckpointError(f"the chat template in `{checkpoint}` is not valid: {error}") from error
        return cls(template, _special_tokens(config))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The messages as text, and what opens the model's turn.

        Raises:
            CheckpointError: the template refuses the messages or does what a sandbox does not allow.
        """
        pieces: list[str] = []
        try:
            stream = self.template.generate(messages=messages, **SETTINGS, **self.special_tokens)
            pieces.extend(takewhile(_bounded(), stream))
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"the chat template failed: {error}", "compare it with the published one") from error
        return "".join(pieces)


def _bounded() -> Any:
    total = 0

    def within(piece: str) -> bool:
        nonlocal total
        total += len(piece)
        if total > LARGEST_TEXT_CHARACTERS:
            raise TemplateError(f"it yields more than {LARGEST_TEXT_CHARACTERS:,} characters")
        return True

    return within


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _source(checkpoint: Path, config: Mapping[str, Any]) -> str:
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    written = config.get("chat_template")
    if (older := checkpoint / "chat_template.json").is_file():
        written = read_json(older).get("chat_template", written)
    if isinstance(written, list):  # several by name; the one for plain chat is called so
        written = next((one.get("template") for one in written if one.get("name") == "default"), None)
    if not isinstance(written, str):
        raise CheckpointError(f"`{checkpoint}` has no chat template", "fetch tokenizer_config.json again")
    return written


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: value for name, value in contents.items() if isinstance(value, str)}
