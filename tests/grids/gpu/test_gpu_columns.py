"""Triton kernels of column loops against the loops that numba compiles: the same codes, for all grids and shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcpmq.grids.kernels import columns as cpu_columns
from tests.triton_device import DEVICE  # before the kernels

from mcpmq.grids.gpu import columns as gpu_columns  # isort: skip

TABLE = torch.tensor([-4.0, -1.5, 0.5, 3.0, 8.0])


def _sixteenths(generator: torch.Generator, largest: int, *shape: int) -> Tensor:
    """Return multiples of 1/16: sums and products of a few of them are exact in any order."""
    return torch.randint(-largest, largest + 1, shape, generator=generator) / 16


def _grid(generator: torch.Generator, groups: int, rows: int, has_offset: bool) -> Tensor:
    """Return divisors, scales, zero points and offsets; some scales are zero, with a divisor of 1."""
    scale = 2.0 ** torch.randint(-2, 2, (groups, rows), generator=generator)
    scale[torch.rand(groups, rows, generator=generator) < 0.1] = 0
    zero = torch.randint(0, 16, (groups, rows), generator=generator).float()
    offset = _sixteenths(generator, 8, groups, rows) * has_offset
    return torch.stack([torch.where(scale == 0, 1, scale), scale, zero, offset], 1)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 70), st.integers(1, 37), st.sampled_from(["integers", "offsets", "table"]), st.integers(0, 99))
def test_columns_are_rounded_as_on_the_cpu(columns: int, rows: int, kind: str, seed: int) -> None:
    """Codes, errors and compensated columns are equal in every bit where sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    factors = _sixteenths(generator, 2, columns + 3, columns + 3)[:columns, 3:]
    residual = _sixteenths(generator, 64, columns, rows)
    compensated = residual + _sixteenths(generator, 4, columns, rows)
    groups, table = torch.arange(columns) // 5, TABLE if kind == "table" else None
    grid = _grid(generator, int(groups[-1]) + 1, rows, kind == "offsets")
    expected = residual.clone(), compensated.clone(), torch.zeros(columns, rows, dtype=torch.uint8)
    found = residual.to(DEVICE), compensated.to(DEVICE), expected[2].to(DEVICE)

    device_table = None if table is None else table.to(DEVICE)
    grids = groups.int().to(DEVICE), grid.to(DEVICE)
    gpu_columns.round_columns(factors.to(DEVICE), *found, *grids, device_table, (0, 15))

    arguments = factors.numpy(), *(part.numpy() for part in expected), groups.numpy(), grid.numpy()
    if table is None:
        cpu_columns.round_columns(*arguments, np.array([0, 15], np.float32))  # type: ignore[call-arg]
    else:
        cpu_columns.round_columns_to_table(*arguments, table.numpy())  # type: ignore[call-arg]
    assert all(torch.equal(one, other.cpu()) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("value", [0.5, 1.5, -0.5, 2.5, 1e6, -1e6])
def test_halves_are_rounded_to_even_and_values_far_outside_to_the_last_code(value: float) -> None:
    """As on the CPU, which rounds 0.5 and 2.5 down and 1.5 up."""
    state = torch.full((1, 1), value), torch.full((1, 1), value), torch.zeros(1, 1, dtype=torch.uint8)
    residual, compensated, codes = (part.to(DEVICE) for part in state)
    grid = torch.tensor([1.0, 1.0, 8.0, 0.0]).reshape(1, 4, 1).to(DEVICE)
    groups = torch.zeros(1, dtype=torch.int32, device=DEVICE)

    gpu_columns.round_columns(
        torch.ones(1, 1, device=DEVICE), residual, compensated, codes, groups, grid, None, (0, 15)
    )

    assert int(codes[0, 0]) == min(max(round(value) + 8, 0), 15)
