"""How the bytes are laid out: one room a format, all of one shape, imported only when asked for."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, cast, get_args

from mcpmq.errors import FormatError, MissingExtra
from mcpmq.families.family import Family
from mcpmq.formats.format import Format
from mcpmq.plan import Plan, Step

FormatName = Literal["gguf", "onnx"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
NEEDS: dict[FormatName, tuple[str, ...]] = {"gguf": ("xllamacpp",), "onnx": ("onnx", "onnx_ir", "onnxruntime")}


def format_named(name: FormatName) -> Format:
    """The room of a format, once everything that writes and runs it is found to be installed.

    Raises:
        MissingExtra: something is not.
    """
    for package in NEEDS[name]:
        if find_spec(package) is None:
            raise MissingExtra(name, package)
    return cast(Format, import_module(f"mcpmq.formats.{name}"))


def check(plan: Plan, name: FormatName) -> None:
    """Refuse, before any work, a plan that the format cannot hold.

    Raises:
        FormatError: names the weight, the scheme, and what the format can hold.
        MissingExtra: what writes or runs the format is not installed.
    """
    check_steps(plan.checkpoint.family, plan.steps, name)


def check_steps(family: Family, steps: Iterable[Step], name: FormatName) -> None:
    """The same for weights that are quantized already.

    Raises:
        FormatError: names the weight, the scheme, and what the format can hold.
    """
    layout = format_named(name)
    if refusal := dict(family.refusals).get(name):
        raise FormatError(f"`{name}` cannot hold `{family.name}`", refusal)
    for step in steps:
        if reason := layout.refuses(step):
            raise FormatError(f"`{name}` cannot hold `{step.name}` as `{step.scheme or step.dtype}`", reason)
