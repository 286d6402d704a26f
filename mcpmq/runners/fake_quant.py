"""Activation fake quantization: a torch module rounds matrix inputs as an engine with integer activations does."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from mcpmq.calibrate.forward import input_module
from mcpmq.execution.hooks import attention_before_projection
from mcpmq.execution.torch_model import TorchModel
from mcpmq.families.family import Family
from mcpmq.grids.activation import InputGrid


def fake_quantize_activations(family: Family, model: TorchModel, grids: Mapping[str, Sequence[InputGrid]]) -> None:
    """Register hooks that round the inputs of the matrices named in `grids`.

    A matrix has one grid; the packed projection of an nn.MultiheadAttention may have three: for the inputs of queries,
    keys and values.
    """
    for block, parameters in model.blocks.items():
        for parameter, spec in parameters.items():
            if spec.name in grids:
                _add_hook(block, parameter, input_module(family, spec, parameter), grids[spec.name])


def _add_hook(block: nn.Module, parameter: str, input_from: str | None, grids: Sequence[InputGrid]) -> None:
    owner, _, leaf = parameter.rpartition(".")
    module, parent = block.get_submodule(owner), block.get_submodule(owner.rpartition(".")[0])
    if input_from is not None:
        block.get_submodule(input_from).register_forward_hook(lambda _, __, output: grids[0].fake_quantize(output))
    elif isinstance(module, nn.MultiheadAttention) and leaf == "in_proj_weight":
        module.register_forward_pre_hook(partial(_quantize_packed_inputs, grids), with_kwargs=True)
    elif isinstance(parent, nn.MultiheadAttention):  # out_proj is applied by a function, so hooks on it never run
        vars(parent)["forward"] = partial(_attention, parent, grids[0])
    else:
        module.register_forward_pre_hook(lambda _, args: (grids[0].fake_quantize(args[0]), *args[1:]))


def _quantize_packed_inputs(
    grids: Sequence[InputGrid], _: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Tensor, ...], Mapping[str, Any]]:
    quantized = tuple(grid.fake_quantize(value) for grid, value in zip(cycle(grids), args[:3], strict=False))
    return (*quantized, *args[3:]), kwargs


def _attention(attention: nn.MultiheadAttention, grid: InputGrid, *args: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Compute attention with the input of its output projection rounded; attention weights are not returned."""
    mixed = grid.fake_quantize(attention_before_projection(attention, *args[:3]))
    return linear(mixed, attention.out_proj.weight, attention.out_proj.bias), None
