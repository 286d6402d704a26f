"""Zero-padding of FFN intermediate sizes to whole quantization blocks, which does not change the model's outputs.

Padded rows of the first matrix produce activations of zero, the activation function maps zero to zero, and the padded
columns of the second matrix multiply these zeros.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mcpmq.families.family import TensorSpec

if TYPE_CHECKING:  # a forecast computes shapes without torch
    from torch import Tensor

    from mcpmq.qtensor import QTensor


def stored_shape(spec: TensorSpec, padded_size: int | None = None) -> tuple[int, ...]:
    """Return the shape of a weight in a file, [out, in], with its paddable axis (if any) set to `padded_size`."""
    shape = spec.shape[::-1] if spec.transposed else spec.shape
    if spec.paddable_axis is None or padded_size is None:
        return shape
    return (padded_size, *shape[1:]) if spec.paddable_axis == "rows" else (shape[0], padded_size)


def padded_shapes(specs: Mapping[str, TensorSpec], padded_size: int) -> dict[str, tuple[int, ...]]:
    """Return the stored shape of every weight and bias that padding changes, by common name."""
    paddable = {name: spec for name, spec in specs.items() if spec.paddable_axis}
    shapes = {name: stored_shape(spec, padded_size) for name, spec in paddable.items()}
    return {name: shape for name, shape in shapes.items() if shape != specs[name].shape}


def pad_weight(weight: "QTensor | Tensor", shape: tuple[int, ...]) -> "QTensor | Tensor":
    """Pad a weight with zeros after its last row and column; return it unchanged if it has the shape already."""
    from torch import Tensor

    if tuple(weight.shape) == shape:
        return weight
    return pad_tensor(weight, shape) if isinstance(weight, Tensor) else _pad_codes(weight, *shape)


def _pad_codes(weight: "QTensor", rows: int, columns: int) -> "QTensor":
    """Pad with the code that dequantizes to zero; new groups get a scale of 1."""
    import torch

    from mcpmq.qtensor import IntegerTensor

    assert isinstance(weight, IntegerTensor)
    scheme, groups = weight.scheme, (rows, weight.scheme.num_groups(columns))
    zero_point = None if weight.zero_point is None else pad_tensor(weight.zero_point, groups, scheme.zero_point)
    codes = pad_tensor(weight.codes, (rows, columns), scheme.zero_point)
    if zero_point is not None:  # new columns of the last group use the zero point of that group
        group = torch.arange(weight.columns, columns) // scheme.group_columns(columns)
        codes[:, weight.columns :] = zero_point[:, group]
    return replace(weight, codes=codes, scale=pad_tensor(weight.scale, groups, 1), zero_point=zero_point)


def pad_tensor(values: "Tensor", shape: tuple[int, ...], fill_value: int = 0) -> "Tensor":
    """Pad a tensor at the end of each axis with a constant."""
    padded = values.new_full(shape, fill_value)
    padded[tuple(map(slice, values.shape))] = values
    return padded
