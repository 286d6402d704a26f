"""LDLQ: round columns one after another, with the errors of all earlier columns compensated in the later ones.

Equal to the column loop of GPTQ (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304): the codes are the same and
no inverse is needed. Recursive halving turns nearly all of the work into matrix products: the error of the left half
is added to the right half at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mcpmq.grids.levels import Levels, has_kernels

LEAF_COLUMNS, GPU_LEAF_COLUMNS = 32, 64  # columns that are compensated one at a time

ChooseLevels = Callable[[int, Tensor], Levels]
"""Choose the levels of a group from the position of its first column and its compensated weight [columns, rows]."""


@dataclass(frozen=True, slots=True)
class LdlqState:
    """The state of rounding some rows; tensors are float32 [columns, rows] where nothing else is given."""

    unit_upper: Tensor  # float32 [columns, columns]
    residual: Tensor  # the weight; after a column is rounded, its error
    compensated: Tensor  # the weight plus the compensation of earlier errors; afterwards its error
    codes: Tensor  # uint8
    group_columns: int
    choose_levels: ChooseLevels
    pivots: Tensor | None  # float32 [columns]; only vectors need them


def ldlq(
    weight: Tensor,
    unit_upper: Tensor,
    group_columns: int,
    choose_levels: ChooseLevels,
    pivots: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Round a weight [columns, rows]; return codes uint8 and unit_upper.T times the error of their values, float32.

    The levels of every `group_columns` columns, a power of two or all columns, are chosen for their compensated weight
    when the group is reached. The codes of a vector are chosen together, with the least loss by `pivots`.
    """
    residual = weight.clone()
    codes = torch.empty_like(residual, dtype=torch.uint8)
    state = LdlqState(unit_upper, residual, residual.clone(), codes, group_columns, choose_levels, pivots)
    _round_columns(state, 0, len(residual), None)
    return state.codes, state.compensated


def _round_columns(state: LdlqState, start: int, stop: int, levels: tuple[int, Levels] | None) -> None:
    """Round the columns from `start` to `stop`; `levels` has the position of its first column."""
    if levels is None and stop - start <= state.group_columns:
        levels = start, state.choose_levels(start, _compensated_group(state, start, stop))
    if levels is not None and stop - start <= (GPU_LEAF_COLUMNS if state.residual.is_cuda else LEAF_COLUMNS):
        round_leaf = _round_leaf if levels[1].vectors is None else _round_vectors
        round_leaf(state, start, stop, *levels)
        return
    middle = start + (1 << (stop - start - 1).bit_length() - 1)
    _round_columns(state, start, middle, levels)
    state.compensated[middle:stop].addmm_(state.unit_upper[start:middle, middle:stop].T, state.residual[start:middle])
    _round_columns(state, middle, stop, levels)


def _compensated_group(state: LdlqState, start: int, stop: int) -> Tensor:
    """Return the real values of the columns that compensate all earlier errors best, if later columns do so too."""
    if start == 0:
        return state.residual[:stop]
    compensation = state.compensated[start:stop] - state.residual[start:stop]
    within_group = state.unit_upper[start:stop, start:stop].T
    change: Tensor = torch.linalg.solve_triangular(within_group, compensation, upper=False, unitriangular=True)
    return change.add_(state.residual[start:stop])


def _round_leaf(state: LdlqState, start: int, stop: int, first: int, levels: Levels) -> None:
    if has_kernels(state.residual):
        leaf = slice(start, stop)
        rows = state.residual[leaf], state.compensated[leaf], state.codes[leaf]
        levels.round_columns(start - first, state.unit_upper[leaf, leaf], *rows)
        return
    for column in range(start, stop):
        codes, values = levels.nearest(column - first, state.compensated[column])
        state.codes[column] = codes
        error = state.residual[column].sub_(values)
        torch.sub(values, state.compensated[column], out=state.compensated[column])
        state.compensated[column + 1 : stop].addr_(state.unit_upper[column, column + 1 : stop], error)


def _round_vectors(state: LdlqState, start: int, stop: int, first: int, levels: Levels) -> None:
    assert state.pivots is not None
    for column in range(start, stop, levels.vector_columns):
        own, group = slice(column, column + levels.vector_columns), levels.groups[column - first]
        within, later = state.unit_upper[own, own].triu(), slice(own.stop, stop)
        targets = levels.to_units(group, _compensated_group(state, own.start, own.stop))
        units = levels.nearest_vectors(targets, (within * state.pivots[own]) @ within.T)
        state.codes[own], values = levels.codes(units), units * levels.scale[group]
        error = state.residual[own].sub_(values)
        state.compensated[own] = values - state.compensated[own].addmm(within.triu(1).T, error)
        state.compensated[later].addmm_(state.unit_upper[own, later].T, error)
