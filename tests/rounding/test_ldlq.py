"""Halving the columns gives what handing on errors column by column gives."""

import pytest
import torch

from mcpmq.grids.levels import Levels
from mcpmq.rounding.ldlq import sweep


@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 100, 257])
@pytest.mark.parametrize("span", [16, 64, 1000])
def test_codes_are_those_of_the_plain_sum(columns: int, span: int) -> None:
    """Column j is rounded after unit[i, j] times every earlier error i was added to it."""
    make = torch.Generator().manual_seed(columns)
    weight = torch.randn(columns, 6, generator=make, dtype=torch.float64)
    unit = torch.eye(columns) + (0.3 * torch.randn(columns, columns, generator=make)).triu(1) / columns**0.5
    one = torch.full((1, 6), 0.25, dtype=torch.float64)
    starts = []

    def fit(low: int, current: torch.Tensor) -> Levels:
        starts.append((low, len(current)))
        return Levels([0] * len(current), one, 0 * one + 100, 0, 255)

    codes = sweep(weight, unit.double(), span, fit)

    errors = torch.zeros_like(weight)
    for column in range(columns):
        wanted = weight[column] + unit[:column, column].double() @ errors[:column]
        expected = (wanted / 0.25).round()
        assert torch.equal(codes[column].double() - 100, expected)
        errors[column] = weight[column] - 0.25 * expected
    assert starts == [(low, min(span, columns - low)) for low in range(0, columns, span)]
