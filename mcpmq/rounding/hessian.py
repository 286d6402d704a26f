"""The Hessian of a layer's inputs in the memory of one matrix: its entries, and above its diagonal later its factor."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from mcpmq.errors import DatasetError
from mcpmq.grids.limits import range_factor

TILE_COLUMNS = 512  # of any number of threads: the same products give the same bytes
MOVED_ROWS = 128  # that are reordered at a time
DEVICE_MOVED_ROWS = 4096  # on devices other than the CPU: few large copies
UNUSED_ENERGY = 1e-6  # of the mean: of padding, and of columns whose inputs were all zero
DAMPING = 0.01  # of the mean diagonal, added to it as in GPTQ


def damp(diagonal: Tensor, energy: Tensor) -> Tensor:
    """Return a diagonal plus the damping for columns of this energy; unused columns count hardly at all."""
    mean = energy[energy > 0].mean()
    return torch.where(energy > 0, diagonal + DAMPING * mean, UNUSED_ENERGY * mean)


def tiles(count: int, size: int) -> list[slice]:
    """Return slices of `size` that cover `count` rows or columns."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True, slots=True)
class OrderedHessian:
    """X^T X, times a power of two if its diagonal is far from 1, with its columns in any order.

    matrix: float32 [n, n]. It is symmetric until `write_upper` changes the entries above the diagonal.
    order: int64 [n], the column at every position. columns: those that are not padding. scale: the power of two.
    energy: float32 [n], the diagonal.
    """

    matrix: Tensor
    order: Tensor
    columns: int
    scale: float
    energy: Tensor

    @classmethod
    def create(cls, gram: Tensor, order: Tensor, pool: Executor, overwrite: bool = False) -> Self:
        """Return the Hessian with its columns, and more columns of padding, in an order.

        With `overwrite` and no padding, it takes the memory of `gram` on the CPU; elsewhere it is a copy.

        Raises:
            DatasetError: all inputs were zero, or one was not finite.
        """
        diagonal = gram.diagonal()
        if not diagonal.isfinite().all() or not diagonal.any():
            raise DatasetError("the calibration inputs of a weight are all zero or not finite", "use other samples")
        scale = range_factor(diagonal)
        matrix = _padded(gram, len(order), overwrite)
        if scale != 1:
            matrix.mul_(scale)
        _reorder(matrix, order, pool)
        return cls(matrix, order, len(gram), scale, matrix.diagonal().clone())

    def restore(self, pool: Executor) -> None:
        """Give the columns of a symmetric matrix in the memory of X^T X their original order and magnitude."""
        _reorder(self.matrix, self.order.argsort(), pool)
        if self.scale != 1:
            self.matrix.div_(self.scale)

    def drop_factor(self, pool: Executor) -> None:
        """Give the entries above the diagonal, which a factor replaced, the values of those below it."""
        self.matrix.diagonal().copy_(self.energy)
        _run(pool, self._mirror, tiles(len(self.matrix), TILE_COLUMNS))

    def add_inputs(self, inputs: Tensor, factor: float, pool: Executor) -> None:
        """Add `factor` times X^T X of inputs [tokens, columns]; the matrix is symmetric afterwards."""
        rows = torch.nn.functional.pad(inputs, (0, len(self.order) - self.columns)).index_select(1, self.order)

        def add_tile(tile: slice) -> None:
            self.matrix[tile, : tile.stop].addmm_(rows[:, tile].T, rows[:, : tile.stop], alpha=factor * self.scale)

        parts = tiles(len(self.matrix), TILE_COLUMNS)
        _run(pool, add_tile, parts)
        _run(pool, self._mirror, parts)
        self.energy.copy_(self.matrix.diagonal())

    def _mirror(self, tile: slice) -> None:
        """Copy the entries of rows from left of the diagonal to above it."""
        corner = self.matrix[tile, tile]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        self.matrix[: tile.start, tile] = self.matrix[tile, : tile.start].T

    def corner(self, block: slice) -> Tensor:
        """Return the entries between consecutive positions, float32 [m, m], from those below the diagonal."""
        below = self.matrix[block, block].tril(-1)
        return (below + below.T).diagonal_scatter(self.energy[block])

    def write_upper(self, order: Tensor, factor: float, diagonal: Tensor, pool: Executor) -> None:
        """Replace the entries above the diagonal by those with the columns in another order, times a factor.

        order: int64 [n], the column at every position. diagonal: float32 [n] in this order, replaces the diagonal.
        The entries below the diagonal do not change.
        """
        source = self.order.argsort()[order]  # the position, in the order of this matrix, of every new position
        target = source.argsort()
        _run(pool, partial(self._write_rows, source, target, factor), _moved_rows(self.matrix))
        self.matrix.diagonal().copy_(diagonal)

    def _write_rows(self, source: Tensor, target: Tensor, factor: float, rows: slice) -> None:
        places = target[rows]
        values = self._whole_rows(rows).index_select(1, source).mul_(factor)
        is_above = torch.arange(len(source), device=places.device) > places[:, None]
        self.matrix.index_copy_(0, places, torch.where(is_above, values, self.matrix.index_select(0, places)))

    def _whole_rows(self, rows: slice) -> Tensor:
        """Return rows [m, n] from the entries below the diagonal."""
        left, right = self.matrix[rows, : rows.start], self.matrix[rows.stop :, rows].T
        return torch.cat([left, self.corner(rows), right], 1)


@dataclass(frozen=True, slots=True)
class ShrunkHessian:
    """The damped Hessian with smaller entries off its diagonal, without a copy of it.

    factor: of the entries. diagonal_part: float32 [n], the rest of the diagonal, in the order of the Hessian.
    """

    hessian: OrderedHessian
    factor: float
    diagonal_part: Tensor

    @classmethod
    def create(cls, hessian: OrderedHessian, shrinkage: float) -> Self:
        """Return a Hessian with its entries off the diagonal multiplied by 1 - shrinkage."""
        energy = hessian.energy
        return cls(hessian, 1 - shrinkage, damp(shrinkage * energy, energy))

    def multiply(self, error: Tensor) -> Tensor:
        """Return the product with an error [columns, rows] in the original order: half the slope of the loss."""
        ordered = error.index_select(0, self.hessian.order)
        product = (self.diagonal_part[:, None] * ordered).addmm_(self.hessian.matrix, ordered * self.factor)
        return product.index_select(0, self.hessian.order.argsort())

    def corner(self, block: slice) -> Tensor:
        """Return the entries between consecutive positions, float32 [m, m]."""
        corner = self.hessian.corner(block).mul_(self.factor)
        corner.diagonal().add_(self.diagonal_part[block])
        return corner


def _padded(gram: Tensor, padded: int, overwrite: bool) -> Tensor:
    if padded > len(gram):
        matrix = gram.new_zeros(padded, padded)
        matrix[: len(gram), : len(gram)] = gram
        return matrix
    if overwrite and gram.device.type == "cpu":
        return torch.from_numpy(gram.numpy())  # the same memory, which changes outside of inference mode too
    return gram.clone()


def _reorder(matrix: Tensor, order: Tensor, pool: Executor) -> None:
    """Reorder columns and rows in place, some of them at a time in further memory."""
    if (order.diff() > 0).all():
        return

    def reorder_columns(rows: slice) -> None:
        matrix[rows] = matrix[rows].index_select(1, order)

    def reorder_rows(columns: slice) -> None:
        matrix[:, columns] = matrix[:, columns].index_select(0, order)

    _run(pool, reorder_columns, _moved_rows(matrix))
    _run(pool, reorder_rows, _moved_rows(matrix))


def _moved_rows(matrix: Tensor) -> list[slice]:
    return tiles(len(matrix), MOVED_ROWS if matrix.device.type == "cpu" else DEVICE_MOVED_ROWS)


def _run(pool: Executor, work: Callable[[Any], None], parts: Iterable[slice]) -> None:
    list(pool.map(work, parts))
