"""How the bytes are laid out: one room a format, all of one shape, imported only when asked for."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, cast, get_args

from mcpmq.errors import FormatError, MissingExtra
from mcpmq.families.family import Family
from mcpmq.formats.format import Format
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.hf.names import uneven
from mcpmq.plan import Plan, Step

FormatName = Literal["gguf", "onnx", "gptq", "awq", "bnb", "compressed-tensors"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
ROUNDING_INPUTS: tuple[FormatName, ...] = ("onnx",)  # can hold to what inputs of matrices are rounded
NEEDS: dict[FormatName, tuple[str, ...]] = {
    "gguf": ("xllamacpp",),
    "onnx": ("onnx", "onnx_ir", "onnxruntime"),
    "gptq": (),
    "awq": (),
    "bnb": ("bitsandbytes", "accelerate"),
    "compressed-tensors": ("compressed_tensors", "accelerate"),
}
ONE_GRID: tuple[FormatName, ...] = ("gptq", "awq", "bnb", "compressed-tensors")  # for all weights of an artifact


def format_named(name: FormatName) -> Format:
    """The room of a format, once everything that writes and runs it is found to be installed.

    Raises:
        MissingExtra: something is not.
    """
    for package in NEEDS[name]:
        if find_spec(package) is None:
            raise MissingExtra(name, package)
    return cast(Format, import_module(f"mcpmq.formats.{name.replace('-', '_')}"))


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
    layout, steps = format_named(name), tuple(steps)
    if refusal := dict(family.refusals).get(name):
        raise FormatError(f"`{name}` cannot hold `{family.name}`", refusal)
    for step in steps:
        if step.activation and name not in ROUNDING_INPUTS:
            raise FormatError(
                f"`{name}` cannot hold that inputs of `{step.name}` are rounded to `{step.activation}`",
                f"leave [activations] out of the recipe; held by: {', '.join(ROUNDING_INPUTS)}",
            )
        if reason := layout.refuses(step):
            raise FormatError(f"`{name}` cannot hold `{step.name}` as `{step.scheme or step.dtype}`", reason)
    if name in ONE_GRID:
        _refuse_grids([step for step in steps if is_packed(step.scheme)], name)
    if name == "gptq" and (odd := uneven(steps)):
        hint = f"transformers packs the same in every layer; give `{odd.name}` what its like in other layers have"
        raise FormatError(f"`{name}` cannot hold `{odd.name}` as `{odd.scheme or odd.dtype}`", hint)


def _refuse_grids(packed: Sequence[Step], name: FormatName) -> None:
    if not packed:
        raise FormatError(
            f"no weight is quantized: `{name}` would hold nothing", "give linear layers a grid of its own"
        )
    first = packed[0]
    for step in packed:
        if step.scheme != first.scheme:
            hint = (
                f"its config.json names one grid for all weights: `{first.scheme}`, as `{first.name}` has it, or `keep`"
            )
            raise FormatError(f"`{name}` cannot hold `{step.name}` as `{step.scheme}`", hint)
