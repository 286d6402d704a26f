"""Smoothing scales that minimize the error that GPTQ is expected to leave, fitted by gradient descent.

An error in column j that later columns compensate costs the pivot D_j of the factored Hessian times its square
(arXiv 2307.13304), and the errors of a group are proportional to its largest weight. With the scales s the error of a
matrix is therefore proportional to the sum over its groups of (sum_j D_j / s_j^2) times the sum over rows of
max_j (s_j w_j)^2. The maximum is smoothed to a norm of the order 8; Adam (arXiv 1412.6980) minimizes the logarithm.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import thread_pool
from mcpmq.rounding.cholesky import shrunk_cholesky
from mcpmq.rounding.hessian import OrderedHessian
from mcpmq.rounding.shrinkage import default_shrinkage
from mcpmq.rounding.stats import InputStats

STEPS, RATE, DECAYS, EPSILON = 150, 0.03, (0.9, 0.999), 1e-8
ORDER = 8
SMALLEST = 1e-4  # of the root mean square of a matrix; the minimum of a weight


def column_pivots(stats: InputStats) -> Tensor:
    """Return the pivot of every column, float32 [columns], in the order of GPTQ; the Hessian does not change."""
    with torch.inference_mode(mode=False), thread_pool() as pool:
        order = stats.gram.diagonal().argsort(descending=True, stable=True)
        hessian = OrderedHessian.create(stats.gram, order, pool, overwrite=True)
        pivots = shrunk_cholesky(hessian, order, default_shrinkage(stats), pool).pivots
        hessian.drop_factor(pool)
        hessian.restore(pool)
        return torch.empty_like(pivots).index_copy_(0, order, pivots)


def fit_log_scales(
    matrices: Sequence[Tensor],
    pivots: Tensor,
    group_columns: int,
    expand: Callable[[Tensor], Tensor],
    reduce: Callable[[Tensor], Tensor],
    channels: int,
) -> Tensor:
    """Return the logarithms of scales, float64 [channels].

    matrices: some rows of each, [rows, columns]. pivots: [columns]. `expand` repeats values of channels for their
    columns, `reduce` takes the mean over the columns of a channel.
    """
    costs, raised = pivots.double().cpu(), [_raise(one.cpu(), group_columns) for one in matrices]
    costs = costs / costs.mean()
    logs, mean, square = (torch.zeros(channels, dtype=torch.float64) for _ in range(3))
    for step in range(1, STEPS + 1):
        gradient = reduce(log_error_gradient(expand(logs), costs, raised))
        mean.mul_(DECAYS[0]).add_(gradient, alpha=1 - DECAYS[0])
        square.mul_(DECAYS[1]).add_(gradient.square(), alpha=1 - DECAYS[1])
        spread = (square / (1 - DECAYS[1] ** step)).sqrt_() + EPSILON
        logs -= RATE * mean / (1 - DECAYS[0] ** step) / spread
    return logs


def _raise(matrix: Tensor, group_columns: int) -> Tensor:
    """Return the magnitudes of weights to the power of the norm, float64 [rows, groups, group columns]."""
    values = matrix.double() / matrix.double().square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    raised = values.abs().clamp(min=SMALLEST).pow_(ORDER)
    padded = torch.nn.functional.pad(raised, (0, -raised.shape[1] % group_columns))
    return padded.reshape(len(padded), -1, group_columns)


def log_error_gradient(logs: Tensor, costs: Tensor, raised: Sequence[Tensor]) -> Tensor:
    """Return the derivatives of the logarithm of the expected error by the logarithms of the scales, [columns]."""
    columns, group_columns = len(logs), raised[0].shape[-1]
    grouped = torch.nn.functional.pad(torch.stack([logs, costs]), (0, -columns % group_columns))
    logs, costs = grouped.reshape(2, -1, group_columns)
    powers, costs = (ORDER * logs).exp(), costs * (-2 * logs).exp()
    largest, slopes = torch.zeros(len(costs), dtype=costs.dtype), torch.zeros_like(costs)
    for matrix in raised:
        sums = (matrix * powers).sum(-1)
        largest += sums.pow(2 / ORDER).sum(0)
        slopes += 2 * powers * (matrix * sums.pow(2 / ORDER - 1)[..., None]).sum(0)
    total = costs.sum(1)
    gradient = slopes * total[:, None] - 2 * costs * largest[:, None]
    return gradient.flatten()[:columns] / (total @ largest)
