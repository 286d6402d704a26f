"""Inputs of matrices rounded in a torch module as an engine with integer activations rounds them."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from mcpmq.calibrate.forward import fed_by
from mcpmq.execution.hooks import before_output_projection
from mcpmq.execution.torch_model import NativeModel
from mcpmq.families.family import Family
from mcpmq.grids.activation import InputGrid


def round_inputs(family: Family, model: NativeModel, grids: Mapping[str, Sequence[InputGrid]]) -> None:
    """Have a model round, from now on, the inputs of the matrices named in `grids`: to one grid, or, for the packed
    projection of attention, to one for queries, keys and values each."""
    for block, parameters in model.blocks.items():
        for parameter, spec in parameters.items():
            if spec.name in grids:
                _round(block, parameter, fed_by(family, spec, parameter), grids[spec.name])


def _round(block: nn.Module, parameter: str, feeder: str | None, grids: Sequence[InputGrid]) -> None:
    holder, _, leaf = parameter.rpartition(".")
    module, outer = block.get_submodule(holder), block.get_submodule(holder.rpartition(".")[0])
    if feeder is not None:
        block.get_submodule(feeder).register_forward_hook(lambda _, __, output: grids[0].rounded(output))
    elif isinstance(module, nn.MultiheadAttention) and leaf == "in_proj_weight":
        module.register_forward_pre_hook(partial(_round_packed, grids), with_kwargs=True)
    elif isinstance(outer, nn.MultiheadAttention):
        vars(outer)["forward"] = partial(_attend, outer, grids[0])
    else:
        module.register_forward_pre_hook(lambda _, args: (grids[0].rounded(args[0]), *args[1:]))


def _round_packed(
    grids: Sequence[InputGrid], _: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Any]
) -> tuple[tuple[Tensor, ...], Mapping[str, Any]]:
    rounded = tuple(grid.rounded(value) for grid, value in zip(cycle(grids), args[:3], strict=False))
    return (*rounded, *args[3:]), named


def _attend(attention: nn.MultiheadAttention, grid: InputGrid, *args: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Attention with what its output projection sees rounded; nobody asks for the weights."""
    mixed = grid.rounded(before_output_projection(attention, *args[:3]))
    return linear(mixed, attention.out_proj.weight, attention.out_proj.bias), None
