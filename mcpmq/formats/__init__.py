"""Byte layouts, one package each; a package declares its layout as `FORMAT` and is imported only when it is needed."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import cast, get_args

from mcpmq.artifact import FormatName, Kind
from mcpmq.errors import FormatError, MissingExtra
from mcpmq.families.family import Family
from mcpmq.formats.format import Engine, Format
from mcpmq.formats.hf.constraints import check_single_scheme
from mcpmq.plan import Plan, TensorPlan

__all__ = [
    "FORMATS",
    "FormatName",
    "check_plan",
    "check_tensors",
    "declared_format",
    "engine_of",
    "format_named",
    "format_of",
]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)


def declared_format(name: FormatName) -> Format:
    """Return the description of a format, whether or not the packages it requires are installed."""
    return cast(Format, import_module(f"mcpmq.formats.{name.replace('-', '_')}").FORMAT)


def format_of(kind: Kind) -> Format | None:
    """Return the format of an artifact; None for a quantized model or an importance matrix, which have none."""
    return None if kind == "quantized" or kind == "imatrix" else declared_format(kind)


def engine_of(kind: Kind) -> Engine:
    """Return the engine that runs an artifact; a quantized model runs in PyTorch."""
    target = format_of(kind)
    return target.engine if target else "torch"


def format_named(name: FormatName) -> Format:
    """Return the description of a format whose required packages are installed.

    Raises:
        MissingExtra: a required package is not installed.
    """
    target = declared_format(name)
    for package in target.requires:
        if find_spec(package) is None:
            raise MissingExtra(name, package)
    return target


def check_plan(plan: Plan, name: FormatName) -> None:
    """Check, before any weight is read, that a format can store every tensor of a plan.

    Raises:
        FormatError: the format does not support the family, the scheme of a tensor, or the mix of schemes.
        MissingExtra: a package that writes or runs the format is not installed.
    """
    check_tensors(plan.checkpoint.family, plan.tensors, name)


def check_tensors(family: Family, tensors: Iterable[TensorPlan], name: FormatName) -> None:
    """Check that a format can store the given tensors of a family.

    Raises:
        FormatError: the format does not support the family, the scheme of a tensor, or the mix of schemes.
        MissingExtra: a package that writes or runs the format is not installed.
    """
    target, tensors = format_named(name), tuple(tensors)
    if reason := target.unsupported_family(family):
        raise FormatError(f"`{name}` does not support `{family.name}`", reason)
    for tensor in tensors:
        _check_tensor(tensor, target)
    if target.single_scheme:
        check_single_scheme(tensors, name, _recipes_hint(target))
    target.check_model(tensors)


def _check_tensor(tensor: TensorPlan, target: Format) -> None:
    if tensor.activation and tensor.activation not in target.activations:
        supporting = [name for name in FORMATS if tensor.activation in declared_format(name).activations]
        raise FormatError(
            f"`{target.name}` does not support quantized activations: `{tensor.name}` has `{tensor.activation}`",
            f"remove [activations] from the recipe, or export to: {', '.join(supporting)}",
        )
    if reason := target.unsupported_reason(tensor):
        message = f"`{target.name}` cannot store `{tensor.name}` as `{tensor.scheme or tensor.dtype}`"
        raise FormatError(message, f"{reason}; {_recipes_hint(target)}")


def _recipes_hint(target: Format) -> str:
    return f"recipes for `{target.name}`: {', '.join(f'`{name}`' for name in target.recipes.values())}"
