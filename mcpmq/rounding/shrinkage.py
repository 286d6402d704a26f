"""Choose the shrinkage of a Hessian towards its diagonal by the error of some rows on held-out inputs.

The Hessian of few tokens has chance correlations, and compensation along them increases the error on other inputs.
Shrinking the entries off the diagonal (Ledoit and Wolf, 2004, "A well-conditioned estimator for large-dimensional
covariance matrices") does not depend on the magnitudes of the columns.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import thread_pool
from mcpmq.execution.device import CPU
from mcpmq.grids import GRIDS, dequantize, quantize
from mcpmq.grids.levels import Levels
from mcpmq.qtensor import QTensor
from mcpmq.rounding.descent import descend, order_hessian
from mcpmq.rounding.hessian import OrderedHessian, ShrunkHessian
from mcpmq.rounding.stats import InputStats
from mcpmq.rounding.target import Target
from mcpmq.scheme import GridScheme

SHRINKAGES = (0.5, 0.3, 0.1, 0.03, 0.01)
FIRST_SHRINKAGE, FIRST_SWEEPS = 0.3, 2  # of the descent from which those of all candidates start
SAMPLE_ROWS = 64  # of a weight, evenly spaced
TILE_ROWS = 512  # of a weight: any number of threads computes the same products
DEVICE_TILE_ROWS = 8192  # on other devices: few large products


@dataclass(frozen=True, slots=True)
class ShrinkageChoice:
    """The shrinkage for a weight, and whether rounding to nearest has a smaller error on the held-out inputs."""

    shrinkage: float
    prefers_nearest: bool = False


def default_shrinkage(stats: InputStats) -> float:
    """Return a shrinkage by the number of tokens: a Hessian of n columns needs several times n of them."""
    columns = len(stats.gram)
    return 2 * columns / (2 * columns + stats.total_weight)


def choose_shrinkage(
    weight: Tensor, scheme: GridScheme, stats: InputStats, target: Target | None = None
) -> ShrinkageChoice:
    """Return the shrinkage with the least error of the outputs of some rows of a weight on the held-out inputs.

    With a target, that of the weight, its weight is rounded instead and the error is that from its outputs.

    Without held-out inputs it is `default_shrinkage`. Needs the memory of a second Hessian, unless the first one may be
    overwritten: it is then restored, up to the rounding errors of subtracting and adding the held-out inputs.
    """
    inputs = stats.held_out_inputs
    if inputs is None or 2 * len(inputs) > sum(stats.token_counts.values()):
        return ShrinkageChoice(default_shrinkage(stats))
    device = stats.gram.device
    target = (target or Target(weight, weight)).take(_sample_rows(weight), device)
    rows, missing = target.weight, target.missing
    with torch.inference_mode(mode=False), _training_hessian(stats, scheme) as hessian:
        round_with = _descent_from_nearest(rows, scheme, hessian)
        shrinkage, error = _least(lambda one: _output_error(round_with(one) - rows, inputs, missing))
    nearest = dequantize(quantize(target.original, scheme)).to(device)
    return ShrinkageChoice(shrinkage, _output_error(nearest - rows, inputs, missing) < error)


def nearest_is_better(
    weight: Tensor, quantized: QTensor, nearest: QTensor, inputs: Tensor, target: Target | None = None
) -> bool:
    """Return whether rounding to nearest gives all rows of a weight a smaller output error on the held-out inputs."""
    target = target or Target(weight, weight)
    with torch.inference_mode(mode=False), thread_pool(inputs.device) as pool:
        first, second = (_total_error(target, one, inputs, pool) for one in (quantized, nearest))
    return second < first


def _total_error(target: Target, quantized: QTensor, inputs: Tensor, pool: Executor) -> float:
    """Return the output error of all rows; they are in tiles, so that any number of threads gives the same sum."""

    def tile_error(start: int) -> float:
        rows = slice(start, start + tile_rows)
        missing = None if target.missing is None else target.missing[:, rows]
        error = dequantize(quantized.slice_rows(rows)) - target.weight[rows].float()
        return _output_error(error.to(inputs.device), inputs, missing)

    tile_rows = TILE_ROWS if inputs.device == CPU else DEVICE_TILE_ROWS
    return sum(pool.map(tile_error, range(0, len(target.weight), tile_rows)))


def _least(error_of: Callable[[float], float]) -> tuple[float, float]:
    """Return the shrinkage of least error and the error, from the middle of the candidates towards smaller errors."""
    found: dict[int, float] = {}

    def error_at(index: int) -> float:
        if index not in found:
            found[index] = error_of(SHRINKAGES[index]) if 0 <= index < len(SHRINKAGES) else inf
        return found[index]

    best = len(SHRINKAGES) // 2
    step = 1 if error_at(best + 1) < error_at(best) else -1
    while error_at(best + step) < error_at(best):
        best += step
    return SHRINKAGES[best], error_at(best)


def _sample_rows(weight: Tensor) -> Tensor:
    """Return the indices of some rows."""
    count = min(len(weight), SAMPLE_ROWS)
    return torch.arange(count) * len(weight) // count


@contextmanager
def _training_hessian(stats: InputStats, scheme: GridScheme) -> Iterator[OrderedHessian]:
    """Yield the Hessian of the inputs that are not held out, in the memory of the other if it may be overwritten."""
    with thread_pool(stats.gram.device) as pool:
        inputs, energy = stats.held_out_inputs if stats.gram_has_held_out else None, stats.gram.diagonal()
        energy = energy if inputs is None else energy - inputs.square().sum(0)
        hessian = order_hessian(stats.gram, scheme, pool, stats.overwrite, energy)
        if inputs is not None:
            hessian.add_inputs(inputs, -1, pool)
        yield hessian
        if hessian.matrix.data_ptr() == stats.gram.data_ptr():
            if inputs is not None:
                hessian.add_inputs(inputs, 1, pool)
            hessian.restore(pool)


def _descent_from_nearest(rows: Tensor, scheme: GridScheme, hessian: OrderedHessian) -> Callable[[float], Tensor]:
    """Return a function from a shrinkage to values, float32 [rows, columns], after a descent with it.

    Without a factorization for every shrinkage they are not those of GPTQ, but the best shrinkage is about the same.
    All descents have the same start, because more sweeps lower the error with any shrinkage.
    """
    grid, columns, padded = GRIDS[type(scheme)], rows.shape[1], len(hessian.order)
    importance = hessian.energy[hessian.order.argsort()][:columns].clamp(min=0)
    levels = grid.levels(grid.fit_grid(rows, scheme, importance), padded, scheme).to(rows.device)
    weight = torch.nn.functional.pad(rows, (0, padded - columns)).T.contiguous()
    codes = _nearest_codes(levels, weight)

    def improve(codes: Tensor, levels: Levels, shrinkage: float, sweeps: int) -> tuple[Tensor, Levels]:
        shrunk = ShrunkHessian.create(hessian, shrinkage)
        slope = shrunk.multiply(levels.values(codes).sub_(weight))
        codes, scale = descend(codes, levels, slope, shrunk, sweeps)
        return codes, replace(levels, scale=scale)

    first = improve(codes, levels, FIRST_SHRINKAGE, FIRST_SWEEPS)

    def round_with(shrinkage: float) -> Tensor:
        codes, levels = improve(*first, shrinkage, 1)
        return levels.values(codes)[:columns].T

    return round_with


def _nearest_codes(levels: Levels, weight: Tensor) -> Tensor:
    if levels.vectors is None:
        return levels.nearest_codes(weight)
    codes = torch.empty_like(weight, dtype=torch.uint8)
    for start in range(0, len(weight), size := levels.vector_columns):
        own = slice(start, start + size)
        targets = levels.to_units(levels.groups[start], weight[own])
        codes[own] = levels.codes(levels.nearest_vectors(targets, torch.eye(size)))
    return codes


def _output_error(error: Tensor, inputs: Tensor, missing: Tensor | None = None) -> float:
    """Return the square of the outputs of an error [rows, columns] without those that a target misses."""
    outputs = inputs @ error.T
    if missing is not None:
        outputs.sub_(missing)
    return float(outputs.square().sum(dtype=torch.float64))
