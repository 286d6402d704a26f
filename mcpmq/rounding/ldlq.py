"""Columns rounded one after another, each making up for the errors of all before it; the sums in large matrix products.

Halving the columns again and again turns nearly all of the work into matrix products: what the left half leaves over is
added to the right half at once. Equal to the column loop of GPTQ (arXiv 2210.17323) in the form of LDLQ
(arXiv 2307.13304): no inverse is needed, and the codes are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mcpmq.grids.levels import Levels

LEAF = 32  # columns that hand their errors on one by one

Fit = Callable[[int, Tensor], Levels]
"""From the first of some columns, and what they have become, float32 [columns, rows], to the values they may take."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The state of rounding some rows; everything [columns, rows]."""

    unit: Tensor  # of the factor
    left: Tensor  # what is to be rounded; after that, what rounding left over
    current: Tensor  # the same with the errors of earlier columns made up for
    codes: Tensor
    span: int
    fit: Fit


def sweep(weight: Tensor, unit: Tensor, span: int, fit: Fit) -> Tensor:
    """Codes, uint8 [columns, rows], of a weight [columns, rows].

    The levels are fitted for every `span` columns, a power of two or all of them, when these are reached: to what they
    have become by then.
    """
    left = weight.clone()
    state = Sweep(unit, left, left.clone(), torch.empty_like(left, dtype=torch.uint8), span, fit)
    _round(state, 0, len(left), None)
    return state.codes


def _round(state: Sweep, low: int, high: int, levels: tuple[int, Levels] | None) -> None:
    """Round columns from `low` to `high`; `levels` begin at a column that comes with them."""
    if levels is None and high - low <= state.span:
        levels = low, state.fit(low, _compensated(state, low, high))
    if levels is not None and high - low <= LEAF:
        _round_leaf(state, low, high, *levels)
        return
    middle = low + (1 << (high - low - 1).bit_length() - 1)
    _round(state, low, middle, levels)
    state.current[middle:high].addmm_(state.unit[low:middle, middle:high].T, state.left[low:middle])
    _round(state, middle, high, levels)


def _compensated(state: Sweep, low: int, high: int) -> Tensor:
    """The best real values of these columns and all after them, given the errors that are already made."""
    if low == 0:
        return state.left[:high]
    debt = state.current[low:high] - state.left[low:high]
    own = state.unit[low:high, low:high].T
    changed: Tensor = torch.linalg.solve_triangular(own, debt, upper=False, unitriangular=True)
    return changed.add_(state.left[low:high])


def _round_leaf(state: Sweep, low: int, high: int, start: int, levels: Levels) -> None:
    for column in range(low, high):
        codes, values = levels.nearest(column - start, state.current[column])
        state.codes[column] = codes
        error = state.left[column].sub_(values)
        state.current[column + 1 : high].addr_(state.unit[column, column + 1 : high], error)
