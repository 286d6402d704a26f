"""Modules as readers of Hugging Face artifacts name them."""

import re
from collections.abc import Iterable, Sequence

from mcpmq.formats.hf.fit import is_packed
from mcpmq.plan import Step


def module_of(hub_name: str) -> str:
    """The module that holds a weight."""
    return hub_name.rpartition(".")[0]


def wide_modules(steps: Iterable[Step]) -> tuple[str, ...]:
    """The outermost modules that hold matrices, none of them packed; in the order of the forward pass.

    These are what `modules_to_not_convert` and its like name: readers take the module itself and all inside of it.
    """
    matrices = [step for step in steps if step.spec.role == "matrix"]
    packed = {part for step in matrices if is_packed(step.scheme) for part in _paths(module_of(step.spec.hub_name))}
    kept = (step.spec.hub_name for step in matrices if not is_packed(step.scheme))
    return tuple(dict.fromkeys(next(path for path in _paths(module_of(name)) if path not in packed) for name in kept))


def _paths(module: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def as_pattern(module: str) -> str:
    """A regular expression that matches a module and all inside of it, wherever a reader puts the model itself."""
    return rf"(.*\.)?{re.escape(module)}(\..*)?$"


def patterns(modules: Sequence[str]) -> list[str]:
    """One for each module."""
    return [as_pattern(module) for module in modules]
