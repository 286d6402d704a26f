"""How the bytes are laid out: one room a format, all of one shape, imported only when asked for."""

from collections.abc import Iterable
from importlib import import_module
from typing import Literal, cast, get_args

from mcpmq.errors import FormatError, MissingExtra
from mcpmq.formats.format import Format
from mcpmq.plan import Plan, Step

FormatName = Literal["gguf", "onnx"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)


def format_named(name: FormatName) -> Format:
    """The room of a format.

    Raises:
        MissingExtra: what it is made of is not installed.
    """
    try:
        return cast(Format, import_module(f"mcpmq.formats.{name}"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("mcpmq"):
            raise
        raise MissingExtra(name, error.name) from error


def check(plan: Plan, name: FormatName) -> None:
    """Refuse, before any work, a plan that the format cannot hold.

    Raises:
        FormatError: names the weight, the scheme, and what the format can hold.
    """
    check_steps(plan.steps, name)


def check_steps(steps: Iterable[Step], name: FormatName) -> None:
    """The same for weights that are quantized already.

    Raises:
        FormatError: names the weight, the scheme, and what the format can hold.
    """
    layout = format_named(name)
    for step in steps:
        if reason := layout.refuses(step):
            raise FormatError(f"`{name}` cannot hold `{step.name}` as `{step.scheme or step.dtype}`", reason)
