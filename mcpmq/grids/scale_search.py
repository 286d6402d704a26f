"""Search for the scale of a group with the least weighted square error, by starts and least squares.

As `make_qx_quants` of ggml-quants.c: a start gives codes, and these codes have their best scale in closed form. Scales
of the other sign, and starts below four fifths of the range, gained nothing on the weights of language models.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

SHARES = (1.0, 1.1, 1.06, 1.03, 0.97, 0.94, 0.9, 0.85)  # of the full range of a group: starts

ToUnits = Callable[[Tensor], Tensor]
"""Round values over their scale, [..., group size], to values of codes at a scale of 1; may change its argument."""


@dataclass(frozen=True, slots=True)
class FoundScale:
    """The best scale of every group, float32 [rows, groups], not yet rounded, and the index of its start."""

    scale: Tensor
    start: Tensor


def search_scale(
    groups: Tensor, importance: Tensor, starts: Iterable[Tensor], to_units: Callable[[int], ToUnits]
) -> FoundScale:
    """Return the scale of every group that lowers the error most, the first of equals.

    groups: float32 [rows, groups, group size]; importance: float32, multiplies their square errors. starts: scales
    [rows, groups], not zero. to_units: the rounding of a start by its index. A group of zeros keeps its first start.
    """
    weighted, found, most = groups * importance, None, None
    for index, start in enumerate(starts):
        units = to_units(index)(groups / start[..., None])
        product = (weighted * units).sum(-1)
        square = units.square_().mul_(importance).sum(-1)
        gain = torch.where(square > 0, product.square() / square, 0)
        scale = torch.where(square > 0, product / square, start)
        if found is None or most is None:
            found, most = FoundScale(scale, torch.zeros_like(scale, dtype=torch.long)), gain
            continue
        better = gain > most
        found = FoundScale(torch.where(better, scale, found.scale), torch.where(better, index, found.start))
        most = torch.where(better, gain, most)
    assert found
    return found
