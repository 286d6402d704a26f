"""Choose the shrinkage of a Hessian towards its diagonal by the error of some rows on held-out inputs.

The Hessian of few tokens has chance correlations, and compensation along them increases the error on other inputs.
Shrinking the entries off the diagonal (Ledoit and Wolf, 2004, "A well-conditioned estimator for large-dimensional
covariance matrices") does not depend on the magnitudes of the columns.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import thread_pool
from mcpmq.grids import GRIDS, dequantize, quantize
from mcpmq.grids.levels import Levels
from mcpmq.rounding.descent import ShrunkHessian, descend
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import GridScheme

SHRINKAGES = (0.5, 0.3, 0.1, 0.03, 0.01)
FIRST_SHRINKAGE, FIRST_SWEEPS = 0.3, 3  # of the descent from which those of all candidates start
SAMPLE_ROWS = 64  # of a weight, evenly spaced
TILE_ROWS = 512  # of a Hessian: any number of threads computes the same products


@dataclass(frozen=True, slots=True)
class ShrinkageChoice:
    """The shrinkage for a weight, and whether rounding to nearest has a smaller error on the held-out inputs."""

    shrinkage: float
    prefers_nearest: bool = False


def default_shrinkage(stats: InputStats) -> float:
    """Return a shrinkage by the number of tokens: a Hessian of n columns needs several times n of them."""
    columns = len(stats.gram)
    return 2 * columns / (2 * columns + stats.total_weight)


def choose_shrinkage(weight: Tensor, scheme: GridScheme, stats: InputStats) -> ShrinkageChoice:
    """Return the shrinkage with the least error of the outputs of some rows of a weight on the held-out inputs.

    Without held-out inputs it is `default_shrinkage`. Needs the memory of a second Hessian if the first one includes
    the held-out inputs.
    """
    inputs = stats.held_out_inputs
    if inputs is None or 2 * len(inputs) > sum(stats.token_counts.values()):
        return ShrinkageChoice(default_shrinkage(stats))
    device = stats.gram.device
    rows = _sample_rows(weight).to(device).float()
    with torch.inference_mode(mode=False), thread_pool() as pool:
        gram = _training_gram(stats, pool)
    errors = {
        shrinkage: _output_error(values - rows, inputs) for shrinkage, values in _round_by_descent(rows, scheme, gram)
    }
    nearest = dequantize(quantize(rows, scheme)).to(device)
    shrinkage = min(errors, key=errors.__getitem__)
    return ShrinkageChoice(shrinkage, _output_error(nearest - rows, inputs) < errors[shrinkage])


def _sample_rows(weight: Tensor) -> Tensor:
    count = min(len(weight), SAMPLE_ROWS)
    return weight[torch.arange(count, device=weight.device) * len(weight) // count]


def _training_gram(stats: InputStats, pool: Executor) -> Tensor:
    """Return the Hessian of the inputs that are not held out."""
    if not stats.gram_has_held_out:
        return stats.gram
    assert stats.held_out_inputs is not None
    inputs, gram = stats.held_out_inputs, torch.empty_like(stats.gram)

    def subtract(start: int) -> None:
        rows = slice(start, start + TILE_ROWS)
        torch.addmm(stats.gram[rows], inputs[:, rows].T, inputs, alpha=-1, out=gram[rows])

    list(pool.map(subtract, range(0, len(gram), TILE_ROWS)))
    return gram


def _round_by_descent(rows: Tensor, scheme: GridScheme, gram: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Yield every shrinkage and values, float32 [rows, columns], after a descent with it.

    Without a factorization for every shrinkage they are not those of GPTQ, but the best shrinkage is about the same.
    All descents have the same start, because more sweeps lower the error with any shrinkage.
    """
    grid, columns, padded = GRIDS[type(scheme)], rows.shape[1], scheme.padded_columns(rows.shape[1])
    levels = grid.levels(grid.fit_grid(rows, scheme, gram.diagonal().clamp(min=0)), padded, scheme).to(rows.device)
    weight = torch.nn.functional.pad(rows, (0, padded - columns)).T.contiguous()
    codes = _nearest_codes(levels, weight)

    def improve(codes: Tensor, levels: Levels, shrinkage: float, sweeps: int) -> tuple[Tensor, Levels]:
        hessian = ShrunkHessian.create(gram, shrinkage, padded)
        slope = hessian.multiply(levels.values(codes).sub_(weight))
        codes, scale = descend(codes, levels, slope, hessian, sweeps)
        return codes, replace(levels, scale=scale)

    first = improve(codes, levels, FIRST_SHRINKAGE, FIRST_SWEEPS)
    for shrinkage in SHRINKAGES:
        codes, levels = improve(*first, shrinkage, 1)
        yield shrinkage, levels.values(codes)[:columns].T


def _nearest_codes(levels: Levels, weight: Tensor) -> Tensor:
    codes = torch.empty_like(weight, dtype=torch.uint8)
    if levels.vectors is not None:
        for start in range(0, len(weight), size := levels.vector_columns):
            own = slice(start, start + size)
            targets = levels.to_units(levels.groups[start], weight[own])
            codes[own] = levels.codes(levels.nearest_vectors(targets, torch.eye(size)))
        return codes
    for column, values in enumerate(weight):
        codes[column] = levels.nearest(column, values)[0]
    return codes


def _output_error(error: Tensor, inputs: Tensor) -> float:
    return float((inputs @ error.T).square().sum(dtype=torch.float64))
