"""Module names in the configuration of Hugging Face artifacts."""

import re
from collections.abc import Iterable

from mcpmq.formats.hf.constraints import is_linear, is_packed
from mcpmq.plan import TensorPlan


def module_name(hub_name: str) -> str:
    """Return the module of a weight."""
    return hub_name.rpartition(".")[0]


def unquantized_modules(tensors: Iterable[TensorPlan]) -> tuple[str, ...]:
    """Return the outermost modules with matrices, none of them packed, in the order of the forward pass.

    `modules_to_not_convert` and similar lists contain these: loaders skip a module and all of its submodules.
    """
    matrices = [one for one in tensors if len(one.spec.shape) == 2]
    packed = {path for one in matrices if is_packed(one.scheme) for name in _modules(one) for path in _paths(name)}
    kept = (name for one in matrices if not is_packed(one.scheme) for name in _modules(one))
    return tuple(dict.fromkeys(next(path for path in _paths(name) if path not in packed) for name in kept))


def _modules(tensor: TensorPlan) -> tuple[str, ...]:
    """Return the modules of a weight in the checkpoint and in the torch model; a tied embedding has two."""
    return tuple(dict.fromkeys(map(module_name, (tensor.spec.hub_name, *tensor.spec.parameter_names))))


def layers_module(tensors: Iterable[TensorPlan]) -> str:
    """Return the module list of the layers with packed matrices, as the torch model names it: `llm.model.layers`."""
    [name] = {_split_layer(tensor)[0] for tensor in tensors if is_packed(tensor.scheme)}
    return name


def packed_modules_per_layer(tensors: Iterable[TensorPlan]) -> list[str]:
    """Return the names in a layer of the packed modules, which are the same in every layer."""
    return list(dict.fromkeys(_split_layer(tensor)[2] for tensor in tensors if is_packed(tensor.scheme)))


def first_inconsistent(tensors: Iterable[TensorPlan]) -> TensorPlan | None:
    """Return the first matrix that is packed although an earlier layer does not pack it, or the reverse; else None."""
    packed_by_name: dict[str, bool] = {}
    for tensor in tensors:
        if tensor.spec.component == "language" and is_linear(tensor.spec):
            packed = is_packed(tensor.scheme)
            if packed_by_name.setdefault(_split_layer(tensor)[2], packed) != packed:
                return tensor
    return None


def _split_layer(tensor: TensorPlan) -> tuple[str, str, str]:
    """Split `llm.model.layers.0.mlp.up_proj.weight` into llm.model.layers, 0, mlp.up_proj."""
    layers, number, name = re.split(r"\.(\d+)\.", module_name(tensor.spec.parameter_names[0]), maxsplit=1)
    return layers, number, name


def _paths(module: str) -> list[str]:
    """Return the module and its parents: `a.b.c` -> a, a.b, a.b.c."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def module_pattern(module: str) -> str:
    """Return a regular expression for a module and its submodules, under any prefix that a loader adds."""
    return rf"(.*\.)?{re.escape(module)}(\..*)?$"
