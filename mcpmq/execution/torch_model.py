"""A family's torch module without weights, and functions that load and unload its blocks one at a time."""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import find_blocks
from mcpmq.families.blocks import block_name
from mcpmq.families.family import Family, TensorSpec
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor, move, row_device

CHUNK_WEIGHTS = 1 << 24  # weights that are dequantized at a time
DEVICE_CHUNK_WEIGHTS = 1 << 27  # on devices other than the CPU
StoredWeight = QTensor | Tensor  # a weight in the layout of its file, [out, in]


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A module and its blocks in the order of the forward pass; each block maps parameter names to their specs.

    The parameters of a block do not include those of the blocks inside of it.
    """

    module: nn.Module
    blocks: Mapping[nn.Module, Mapping[str, TensorSpec]]
    device: torch.device = CPU

    def load_block(self, block: nn.Module, read: Callable[[TensorSpec], Tensor]) -> None:
        """Load the weights of a block; `read` returns each as float32 in the orientation of the module."""
        weights = {name: read(spec).to(self.device) for name, spec in self.blocks[block].items()}
        block.load_state_dict(weights, assign=True, strict=False)  # the blocks inside of it have parameters, too

    def unload_block(self, block: nn.Module) -> None:
        """Remove the weights of a block from memory."""
        _unload(block, self.device)


def build_model(
    family: Family, config: Mapping[str, Any], specs: Sequence[TensorSpec], device: torch.device = CPU
) -> TorchModel:
    """Build the module of a config.json with no weight in memory."""
    module = build_module(family, config)
    passthrough = {component for component, _ in family.passthrough}
    specs = [spec for spec in specs if spec.component not in passthrough]
    by_parameter = {name: spec for spec in specs for name in spec.parameter_names}
    _unload(module, device)
    module.to(device)  # buffers, such as rotary frequencies
    paths = {part: name for name, part in module.named_modules()}
    blocks = dict.fromkeys(_ordered_blocks(module, specs))
    own = {
        block: {name: by_parameter[f"{paths[block]}.{name}"] for name in _own_parameters(block, blocks)}
        for block in blocks
    }
    return TorchModel(module, own, device)


def _own_parameters(block: nn.Module, blocks: Container[nn.Module]) -> Iterator[str]:
    """Yield the names of a block's parameters without those of the blocks inside of it."""
    yield from (name for name, _ in block.named_parameters(recurse=False))
    for path, module in block.named_children():
        if module not in blocks:
            yield from (f"{path}.{name}" for name in _own_parameters(module, blocks))


def build_module(family: Family, config: Mapping[str, Any]) -> nn.Module:
    """Build the torch module of a family on the meta device."""
    module, _, function = family.torch_builder.partition(":")
    # Configuration classes of transformers write into their argument.
    model: nn.Module = getattr(import_module(module), function)(deepcopy(dict(config)))
    return model


def _ordered_blocks(model: nn.Module, specs: Sequence[TensorSpec]) -> list[nn.Module]:
    """Return the blocks in the order of the forward pass.

    A block of the plan is one module if the module contains no other parameters, else several modules. A head tied to
    the embedding is last, in the place of an untied head.
    """
    groups: dict[str, list[str]] = {}
    for spec in specs:
        groups.setdefault(block_name(spec.name), []).append(spec.parameter_names[0])
    sizes = Counter(path for spec in specs for name in spec.parameter_names for path in _parents(name))
    blocks = [block for names in groups.values() for block in _block_modules(model, names, sizes)]
    return [*blocks, *find_blocks(model, [name for spec in specs for name in spec.parameter_names[1:]])]


def _block_modules(model: nn.Module, names: list[str], sizes: Mapping[str, int]) -> list[nn.Module]:
    """Return the module that has these parameters only, or several modules; `sizes` are parameters by module."""
    paths = zip(*(name.split(".")[:-1] for name in names), strict=False)
    prefix = ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, paths))
    return [model.get_submodule(prefix)] if sizes[prefix] == len(names) else find_blocks(model, names)


def _parents(name: str) -> list[str]:
    """Return the modules that contain a parameter."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _unload(block: nn.Module, device: torch.device) -> None:
    """Replace all parameters by NaN of the same shape with one element of storage.

    They are on a real device, which models query, and NaN makes the use of an unloaded weight visible.
    """
    nan = torch.full((), torch.nan, device=device)
    block.load_state_dict({name: nan.expand(value.shape) for name, value in block.named_parameters()}, assign=True)


def to_float(stored: StoredWeight, spec: TensorSpec, device: torch.device = CPU) -> Tensor:
    """Return a weight [out, in] as float32 in the orientation of the module, on a device.

    Its stored bytes are copied there and converted there.
    """
    match stored:
        case Tensor():
            value = stored.to(device).float()
        case _:
            value = _dequantize_in_chunks(move(stored, device))
    return value.T.contiguous() if spec.transposed else value


def rows_to_float(stored: StoredWeight, rows: Sequence[int], device: torch.device = CPU) -> Tensor:
    """Return a table as float32 with the values of some rows; on the CPU the memory of other rows is never touched."""
    if device == CPU:
        values = torch.from_numpy(np.zeros(stored.shape, np.float32))  # zeros of torch are written
    else:
        values = torch.zeros(stored.shape, device=device)
    for part in torch.split(torch.tensor(rows, dtype=torch.long), max(1, CHUNK_WEIGHTS // stored.shape[1])):
        found = dequantize(stored.slice_rows(part)) if isinstance(stored, QTensor) else stored[part].float()
        values[part.to(device)] = found.to(device)
    return values


def _dequantize_in_chunks(weight: QTensor) -> Tensor:
    """Dequantize some rows at a time, because it needs several times the memory of its result."""
    device = row_device(weight)
    chunk_weights = CHUNK_WEIGHTS if device == CPU else DEVICE_CHUNK_WEIGHTS
    values, step = torch.empty(weight.shape, device=device), max(1, chunk_weights // weight.columns)
    for rows in (slice(row, row + step) for row in range(0, weight.rows, step)):
        values[rows] = dequantize(weight.slice_rows(rows))
    return values
