"""The nearest level, against trying every code."""

import pytest
import torch

from mcpmq.grids.levels import Levels

SCALE = torch.tensor([[0.5, -0.25, 0.0], [1.0, 2.0, 1e-3]])  # two groups of three rows


@pytest.mark.parametrize("kind", ["zero", "base", "table"])
def test_no_code_is_nearer(kind: str) -> None:
    """Scales of either sign, of zero, with zero points, minima and tables."""
    zero = torch.tensor([[3.0, 8.0, 8.0], [0.0, 15.0, 7.0]]) if kind == "zero" else torch.zeros(2, 3)
    base = torch.tensor([[-1.0, 0.5, -0.1], [0.0, -3.0, 0.2]]) if kind == "base" else None
    table = torch.tensor([-9.0, -4.0, -1.0, 0.5, 2.0, 7.0]) if kind == "table" else None
    highest = 5 if kind == "table" else 15
    levels = Levels([0, 1, 1, 0], SCALE, zero, 0, highest, base, table)
    wanted = torch.randn(200, 4, 3, generator=torch.Generator().manual_seed(0)) * 3

    for column, group in enumerate(levels.groups):
        every = torch.arange(highest + 1.0)[:, None]
        values = (table[:, None] if table is not None else every - zero[group]) * SCALE[group]
        values = values if base is None else values + base[group]
        for target in wanted[:, column]:
            codes, found = levels.nearest(column, target)
            assert torch.allclose((found - target).abs(), (values - target).abs().amin(0), atol=1e-6)
            assert torch.allclose(values.gather(0, codes.long()[None])[0], found, atol=1e-6)
