"""Modules as readers of Hugging Face artifacts name them."""

import re
from collections.abc import Iterable

from mcpmq.formats.hf.constraints import is_linear, is_packed
from mcpmq.plan import Step


def module_of(hub_name: str) -> str:
    """The module that holds a weight."""
    return hub_name.rpartition(".")[0]


def wide_modules(steps: Iterable[Step]) -> tuple[str, ...]:
    """The outermost modules that may be linear, and hold nothing packed; in the order of the forward pass.

    These are what `modules_to_not_convert` and its like name: readers take the module itself and all inside of it.
    """
    held = [step for step in steps if len(step.spec.shape) == 2]
    packed = {path for step in held if is_packed(step.scheme) for name in _names(step) for path in _paths(name)}
    kept = (name for step in held if not is_packed(step.scheme) for name in _names(step))
    return tuple(dict.fromkeys(next(path for path in _paths(name) if path not in packed) for name in kept))


def _names(step: Step) -> tuple[str, ...]:
    """The modules of a weight, as the checkpoint calls them and as the native module does; an embedding that is the
    head too has two."""
    return tuple(dict.fromkeys(map(module_of, (step.spec.hub_name, *step.spec.parameters))))


def list_of_layers(steps: Iterable[Step]) -> str:
    """The module that lists the layers with packed matrices, once it is loaded: `llm.model.layers`."""
    [found] = {_place(step)[0] for step in steps if is_packed(step.scheme)}
    return found


def packed_in_layers(steps: Iterable[Step]) -> list[str]:
    """What the layers pack, by its name in a layer, where all layers pack the same."""
    return list(dict.fromkeys(_place(step)[2] for step in steps if is_packed(step.scheme)))


def uneven(steps: Iterable[Step]) -> Step | None:
    """The first matrix of the language model that is packed and its like in an earlier layer is not, or the reverse."""
    fates: dict[str, bool] = {}
    for step in steps:
        if step.spec.component == "language" and is_linear(step.spec):
            packed = is_packed(step.scheme)
            if fates.setdefault(_place(step)[2], packed) != packed:
                return step
    return None


def _place(step: Step) -> tuple[str, str, str]:
    """`llm.model.layers.0.mlp.up_proj.weight` -> llm.model.layers, 0, mlp.up_proj."""
    holder, layer, name = re.split(r"\.(\d+)\.", module_of(step.spec.parameters[0]), maxsplit=1)
    return holder, layer, name


def _paths(module: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def as_pattern(module: str) -> str:
    """A regular expression that matches a module and all inside of it, wherever a reader puts the model itself."""
    return rf"(.*\.)?{re.escape(module)}(\..*)?$"
