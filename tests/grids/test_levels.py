"""The nearest level against trying every code."""

import pytest
import torch

from mcpmq.grids.levels import Levels

SCALE = torch.tensor([[0.5, -0.25, 0.0], [1.0, 2.0, 1e-3]])  # two groups of three rows


@pytest.mark.parametrize("kind", ["zero_point", "offset", "table"])
def test_every_target_gets_its_nearest_code(kind: str) -> None:
    """With positive, negative and zero scales, with zero points, offsets and tables."""
    zero_point = torch.tensor([[3.0, 8.0, 8.0], [0.0, 15.0, 7.0]]) if kind == "zero_point" else torch.zeros(2, 3)
    offset = torch.tensor([[-1.0, 0.5, -0.1], [0.0, -3.0, 0.2]]) if kind == "offset" else None
    table = torch.tensor([-9.0, -4.0, -1.0, 0.5, 2.0, 7.0]) if kind == "table" else None
    qmax = 5 if kind == "table" else 15
    levels = Levels([0, 1, 1, 0], SCALE, zero_point, 0, qmax, offset, table)
    targets = torch.randn(200, 4, 3, generator=torch.Generator().manual_seed(0)) * 3

    for column, group in enumerate(levels.groups):
        codes = torch.arange(qmax + 1.0)[:, None]
        values = (table[:, None] if table is not None else codes - zero_point[group]) * SCALE[group]
        values = values if offset is None else values + offset[group]
        for target in targets[:, column]:
            nearest, found = levels.nearest(column, target)
            assert torch.allclose((found - target).abs(), (values - target).abs().amin(0), atol=1e-6)
            assert torch.allclose(values.gather(0, nearest.long()[None])[0], found, atol=1e-6)


def test_codes_stay_within_the_range() -> None:
    """Targets beyond the range get the lowest and the highest code."""
    levels = Levels([0], torch.full((1, 2), 0.5), torch.full((1, 2), 4.0), 1, 6)

    codes, values = levels.nearest(0, torch.tensor([-100.0, 100.0]))

    assert codes.tolist() == [1, 6]
    assert values.tolist() == [-1.5, 1.0]
