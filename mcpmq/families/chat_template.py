"""Chat template of a checkpoint, rendered in a sandbox because it is untrusted code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, Self

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mcpmq.errors import CheckpointError
from mcpmq.system.json_file import read_json

MAX_TEMPLATE_CHARACTERS = 1 << 18
MAX_OUTPUT_CHARACTERS = 1 << 22
MAX_PRODUCT = 1 << 20
TEMPLATE_VARIABLES = {
    "add_generation_prompt": True,
    "enable_thinking": False,
}  # dataset answers have no reasoning before them


class _Sandbox(ImmutableSandboxedEnvironment):
    """Sandbox that also rejects large repetitions and powers, which could exhaust the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else abs(value) for value in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > MAX_PRODUCT:
            raise TemplateError(f"the operands of `{operator}` are too large")
        return super().call_binop(context, operator, left, right)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Renders chat messages as the prompt text of a model."""

    template: Template
    special_tokens: Mapping[str, str]  # template variables such as `eos_token`

    @classmethod
    def open(cls, checkpoint: Path, default: str | None = None) -> Self:
        """Read the template: `chat_template.jinja`, else the key `chat_template` of chat_template.json, else that of
        tokenizer_config.json, else `default`.

        Raises:
            CheckpointError: no template is found, or it is not valid.
        """
        config = read_json(checkpoint / "tokenizer_config.json")
        source = _source(checkpoint, {"chat_template": default, **config})
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _raise
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise CheckpointError(
                f"the chat template in `{checkpoint}` has {len(source):,} characters, more than"
                f" {MAX_TEMPLATE_CHARACTERS:,}"
            )
        try:
            template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise CheckpointError(f"the chat template in `{checkpoint}` is not valid: {error}") from error
        return cls(template, _special_tokens(config))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render messages, followed by the generation prompt.

        Raises:
            CheckpointError: the template fails, or the sandbox rejects it.
        """
        pieces: list[str] = []
        try:
            stream = self.template.generate(messages=messages, **TEMPLATE_VARIABLES, **self.special_tokens)
            pieces.extend(takewhile(_output_limit(), stream))
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"the chat template failed: {error}", "compare it with the published file") from error
        return "".join(pieces)


def _output_limit() -> Any:
    total = 0

    def within(piece: str) -> bool:
        nonlocal total
        total += len(piece)
        if total > MAX_OUTPUT_CHARACTERS:
            raise TemplateError(f"its output exceeds {MAX_OUTPUT_CHARACTERS:,} characters")
        return True

    return within


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _source(checkpoint: Path, config: Mapping[str, Any]) -> str:
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if (json_file := checkpoint / "chat_template.json").is_file():
        source = read_json(json_file).get("chat_template", source)
    if isinstance(source, list):  # named templates; `default` is the one for chat
        source = next((entry.get("template") for entry in source if entry.get("name") == "default"), None)
    if not isinstance(source, str):
        raise CheckpointError(f"`{checkpoint}` has no chat template", "download its tokenizer_config.json")
    return source


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: value for name, value in contents.items() if isinstance(value, str)}
