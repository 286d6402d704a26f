"""The choice of vectors against brute force."""

import numpy as np
import pytest

from mcpmq.grids.kernels.compiler import LANES
from mcpmq.grids.kernels.vectors import nearest_diagonal, nearest_in_metric
from mcpmq.grids.vector_table import vector_table

SIGNS = np.array([[-1 if number >> bit & 1 else 1 for bit in range(4)] for number in range(16)], np.float32)


def test_the_best_vector_of_magnitudes_is_found() -> None:
    """The weighted error is the least of all vectors of the table."""
    random, vectors = np.random.default_rng(0), vector_table().vectors
    targets = np.abs(6 * random.standard_normal((4, LANES))).astype(np.float32)
    weights, indices = np.array([1, 0.1, 3, 0.5], np.float32), np.zeros(LANES, np.int32)

    nearest_diagonal(targets, weights, vectors, np.empty(LANES, np.float32), indices)

    errors = ((vectors[:, :, None] - targets) ** 2 * weights[:, None]).sum(1)
    np.testing.assert_allclose(errors[indices, np.arange(LANES)], errors.min(0), rtol=1e-5)


def _metric(correlation: float) -> np.ndarray:
    sizes = np.sqrt([1.0, 0.2, 2.0, 0.6])
    return (np.outer(sizes, sizes) * np.where(np.eye(4), 1, correlation)).astype(np.float32)


def _errors(values: np.ndarray, targets: np.ndarray, metric: np.ndarray) -> np.ndarray:
    errors: np.ndarray = np.einsum("...ir,ij,...jr->...r", values - targets, metric, values - targets, optimize=True)
    return errors


@pytest.mark.parametrize("rows", [1, 64, 150])
@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_the_error_in_a_metric_is_near_the_least_of_all_signs(rows: int, correlation: float) -> None:
    """Without correlations it is the least; with them the mean is at most 5 % larger, and every value is signed."""
    random, vectors = np.random.default_rng(rows), vector_table().vectors
    targets, values = (5 * random.standard_normal((4, rows))).astype(np.float32), np.empty((4, rows), np.float32)
    metric = _metric(correlation)

    nearest_in_metric(targets, metric, vectors, values)

    signed = (vectors[:, None] * SIGNS).reshape(-1, 4, 1)
    least = _errors(signed, targets, metric).min(0)
    assert _errors(values, targets, metric).mean() <= (1.05 if correlation else 1.00001) * least.mean()
    assert {tuple(vector) for vector in np.abs(values.T)} <= {tuple(vector) for vector in vectors}


def test_no_other_sign_of_a_column_has_less_error() -> None:
    """Targets are small and strongly correlated; a later change can undo an earlier one, so two of 600 are allowed."""
    targets, values = (
        np.random.default_rng(3).standard_normal((4, 150)).astype(np.float32),
        np.empty((4, 150), np.float32),
    )
    targets, metric = 1.5 * targets, _metric(0.6)

    nearest_in_metric(targets, metric, vector_table().vectors, values)

    changed = values * np.where(np.eye(4, dtype=bool)[:, :, None], -1, 1).astype(np.float32)
    assert (_errors(changed, targets, metric) < _errors(values, targets, metric) - 1e-4).sum() <= 2
