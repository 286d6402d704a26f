"""Targets for weights: on inputs in the quantized model, give the outputs of the original model.

With the inputs x of a layer in the quantized model, their difference e from those in the original one and the shrunk
Hessian H of x, the weight W + W C^T with C = H^-1 sum(x e^T) has outputs closest to W (x + e), as in GPTAQ (arXiv
2504.02692). Where the outputs are added to a residual stream, e is the difference of the stream after the addition, and
the weight is W + C^T. The sum is shrunk as the entries of H off its diagonal are, because few tokens have chance
correlations with e, too.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import thread_pool
from mcpmq.grids.limits import range_factor
from mcpmq.rounding.cholesky import LdlFactor, shrunk_cholesky
from mcpmq.rounding.hessian import OrderedHessian
from mcpmq.rounding.stats import InputStats

TILE_COLUMNS = 512  # of a solution: any number of threads computes the same products


def solve_drift(stats: InputStats) -> None:
    """Replace the products of the drift by C, in place; the factor of the Hessian is for a while in its memory."""
    drift = stats.drift
    if drift is None or not stats.has_inputs:
        return
    columns = len(stats.gram)
    shrinkage = 2 * columns / (2 * columns + stats.total_weight)
    with torch.inference_mode(mode=False), thread_pool(stats.gram.device) as pool:
        order = torch.arange(columns, device=stats.gram.device)
        hessian = OrderedHessian.create(stats.gram, order, pool, overwrite=True)
        factor = shrunk_cholesky(hessian, hessian.order, shrinkage, pool)
        scale = range_factor(stats.gram.diagonal()) * (1 - factor.shrinkage)
        solve = partial(_solve_tile, factor, scale, drift.products)
        list(pool.map(solve, range(0, drift.products.shape[1], TILE_COLUMNS)))
        hessian.drop_factor(pool)
        hessian.restore(pool)


def _solve_tile(factor: LdlFactor, scale: float, products: Tensor, start: int) -> None:
    """Solve for some right sides, times `scale`, in place."""
    with torch.inference_mode():  # the products may be a tensor of this mode, which threads do not inherit
        tile = products[:, start : start + TILE_COLUMNS]
        unit, right = factor.unit_upper, tile * scale
        solved = torch.linalg.solve_triangular(unit, right, upper=True, unitriangular=True).div_(factor.pivots[:, None])
        tile.copy_(torch.linalg.solve_triangular(unit.T, solved, upper=False, unitriangular=True))


@dataclass(frozen=True, slots=True)
class Target:
    """The target of some rows of a weight.

    original, weight: [rows, columns]; equal without drift, else the second is float32.
    missing: float32 [tokens, rows], outputs for the held-out inputs that the target does not give; None without drift.
    """

    original: Tensor
    weight: Tensor
    missing: Tensor | None = None

    @classmethod
    def create(cls, weight: Tensor, stats: InputStats, first_row: int) -> Self:
        """Return the target for rows of a weight from `first_row` on; drift must be solved."""
        drift = stats.drift
        if drift is None:
            return cls(weight, weight)
        rows, on_device = slice(first_row, first_row + len(weight)), weight.to(stats.gram.device)
        change = drift.products[:, rows].T if drift.of_outputs else on_device.float() @ drift.products.T
        target = cls(weight, torch.add(weight, change.to(weight.device)))  # without a copy of the weight in float32
        if drift.held_out is None or stats.held_out_inputs is None:
            return target
        outputs = drift.held_out[:, rows] if drift.of_outputs else drift.held_out @ on_device.float().T
        return replace(target, missing=outputs - stats.held_out_inputs @ change.T)

    def take(self, rows: Tensor, device: torch.device) -> Self:
        """Return the target of rows, int64 [rows], on a device."""
        missing = None if self.missing is None else self.missing[:, rows.to(self.missing.device)].to(device)
        original, weight = (one[rows.to(one.device)].to(device).float() for one in (self.original, self.weight))
        return replace(self, original=original, weight=weight, missing=missing)
