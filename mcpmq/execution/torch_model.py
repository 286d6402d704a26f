"""The family's own torch module, built empty; its blocks are filled and emptied one at a time."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import blocks_of
from mcpmq.families.family import Family, TensorSpec
from mcpmq.grids import dequantize
from mcpmq.plan import block_of
from mcpmq.qtensor import QTensor

PIECE_WEIGHTS = 1 << 24  # dequantized at a time
Stored = QTensor | Tensor  # a weight as it lies on disk, [out, in]


@dataclass(frozen=True, slots=True)
class NativeModel:
    """The module, and its blocks in the order of the forward pass, each with its parameters by their names in it."""

    module: nn.Module
    blocks: Mapping[nn.Module, Mapping[str, TensorSpec]]
    device: torch.device = CPU  # where it computes

    def fill(self, block: nn.Module, floats: Callable[[TensorSpec], Tensor]) -> None:
        """Give a block its weights; `floats` returns each in float32, turned as the module holds it."""
        weights = {name: floats(spec).to(self.device) for name, spec in self.blocks[block].items()}
        block.load_state_dict(weights, assign=True)

    def empty(self, block: nn.Module) -> None:
        """Take a block's weights out of memory."""
        _empty(block, self.device)


def build(
    family: Family, config: Mapping[str, Any], specs: Sequence[TensorSpec], device: torch.device = CPU
) -> NativeModel:
    """The native module of a raw config.json with no weight in memory."""
    model = module_of(family, config)
    unknown = {component for component, _ in family.passed_through}
    specs = [spec for spec in specs if spec.component not in unknown]
    by_parameter = {name: spec for spec in specs for name in spec.parameters}
    _empty(model, device)
    model.to(device)  # what it computes for itself, as frequencies
    names = {part: name for name, part in model.named_modules()}
    blocks = {
        block: {name: by_parameter[f"{names[block]}.{name}"] for name, _ in block.named_parameters()}
        for block in _in_order(model, specs)
    }
    return NativeModel(model, blocks, device)


def module_of(family: Family, config: Mapping[str, Any]) -> nn.Module:
    """The module alone, on the meta device."""
    module, _, function = family.native.partition(":")
    # Configurations of transformers write into the dictionaries that they are given.
    model: nn.Module = getattr(import_module(module), function)(deepcopy(dict(config)))
    return model


def _in_order(model: nn.Module, specs: Sequence[TensorSpec]) -> list[nn.Module]:
    """The blocks as samples meet them: those of a plan, where a module holds just the one's parameters, else the
    modules that it is spread over; a tied head comes last, where an embedding of its own name would."""
    groups: dict[str, list[str]] = {}
    for spec in specs:
        groups.setdefault(block_of(spec.name), []).append(spec.parameters[0])
    blocks = [block for names in groups.values() for block in _modules_of(model, names, specs)]
    return [*blocks, *blocks_of(model, [name for spec in specs for name in spec.parameters[1:]])]


def _modules_of(model: nn.Module, names: list[str], specs: Sequence[TensorSpec]) -> list[nn.Module]:
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*(name.split(".")[:-1] for name in names), strict=False))
    module = ".".join(parts[0] for parts in shared)
    inside = {name for spec in specs for name in spec.parameters if name.startswith(f"{module}.")}
    return [model.get_submodule(module)] if inside == set(names) else blocks_of(model, names)


def _empty(block: nn.Module, device: torch.device) -> None:
    """What stands in for weights has their shapes and a real device, which models ask for, and is not a number: an
    emptied weight that is used shows."""
    absent = torch.full((), torch.nan, device=device)
    block.load_state_dict({name: absent.expand(value.shape) for name, value in block.named_parameters()}, assign=True)


def floats_of(stored: Stored, spec: TensorSpec) -> Tensor:
    """A weight [out, in] in float32, turned as the module holds it."""
    value = _dequantized(stored) if isinstance(stored, QTensor) else stored.float()
    return value.T.contiguous() if spec.transposed else value


def _dequantized(weight: QTensor) -> Tensor:
    """Some rows at a time: what dequantizing takes beside its result is several times the result."""
    values, step = torch.empty(weight.shape), max(1, PIECE_WEIGHTS // weight.columns)
    for part in (slice(row, row + step) for row in range(0, weight.rows, step)):
        values[part] = dequantize(weight.rows_of(part))
    return values
