"""LDLQ by recursive halving against a loop over columns."""

import pytest
import torch

from mcpmq.grids.levels import Levels
from mcpmq.rounding.ldlq import ldlq


@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 100, 257])
@pytest.mark.parametrize("group_columns", [16, 64, 1000])
def test_codes_equal_those_of_the_column_loop(columns: int, group_columns: int) -> None:
    """Column j is rounded after unit_upper[i, j] times every earlier error i is added to it; the error is returned."""
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(columns, 6, generator=generator, dtype=torch.float64)
    unit_upper = torch.eye(columns) + (0.3 * torch.randn(columns, columns, generator=generator)).triu(1) / columns**0.5
    scale = torch.full((1, 6), 0.25, dtype=torch.float64)
    groups = []

    def choose_levels(start: int, compensated: torch.Tensor) -> Levels:
        groups.append((start, len(compensated)))
        return Levels([0] * len(compensated), scale, 0 * scale + 100, 0, 255)

    codes, rounding_error = ldlq(weight, unit_upper.double(), group_columns, choose_levels)

    errors = torch.zeros_like(weight)
    for column in range(columns):
        compensated = weight[column] + unit_upper[:column, column].double() @ errors[:column]
        expected = (compensated / 0.25).round()
        assert torch.equal(codes[column].double() - 100, expected)
        errors[column] = weight[column] - 0.25 * expected
    assert torch.allclose(rounding_error, -unit_upper.double().T @ errors)
    assert groups == [(start, min(group_columns, columns - start)) for start in range(0, columns, group_columns)]
