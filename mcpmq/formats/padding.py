"""Hidden widths that are no whole number of blocks, filled up with zeros in the files: exact, not approximate.

Rows of zeros make activations of zero, an activation function keeps zero, and zeros meet the columns that were added.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mcpmq.qtensor import QTensor
from mcpmq.scheme import IntegerScheme


def widened(weight: QTensor | Tensor, shape: tuple[int, ...]) -> QTensor | Tensor:
    """A weight with zeros behind its rows and columns; itself if it has the shape already."""
    if tuple(weight.shape) == shape:
        return weight
    return filled(weight, shape) if isinstance(weight, Tensor) else _widened_codes(weight, *shape)


def _widened_codes(weight: QTensor, rows: int, columns: int) -> QTensor:
    """Every code that is added is the code of zero; groups that are added have a scale of 1."""
    scheme = weight.scheme
    assert isinstance(scheme, IntegerScheme)
    assert weight.scale is not None
    middle, groups = 2 ** (scheme.bits - 1), (rows, scheme.groups(columns))
    zero = None if weight.zero is None else filled(weight.zero, groups, middle)
    codes = filled(weight.codes, (rows, columns), middle)
    if zero is not None:  # the last group may go on, with the zero point that it has
        group = torch.arange(weight.columns, columns) // (scheme.group_size or columns)
        codes[:, weight.columns :] = zero[:, group]
    return replace(weight, columns=columns, codes=codes, scale=filled(weight.scale, groups, 1), zero=zero)


def filled(values: Tensor, shape: tuple[int, ...], filling: int = 0) -> Tensor:
    """A tensor with more of the same value behind each of its axes."""
    whole = values.new_full(shape, filling)
    whole[tuple(map(slice, values.shape))] = values
    return whole
