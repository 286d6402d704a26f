"""The search of scales against a fine grid of scales."""

import pytest
import torch
from torch import Tensor

from mcpmq.grids import GRIDS, dequantize
from mcpmq.grids.scale_search import SHARES, search_scale
from tests.rounding.oracle import grid_scheme


def _error(values: Tensor, weight: Tensor, importance: Tensor) -> float:
    return float(((values - weight).square() * importance).sum())


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("int4-g32", 1.04),
        ("int4-g32-asym", 1.04),
        ("q4_0", 1.04),
        ("q5_0", 1.04),
        ("iq4_nl", 1.04),
        ("int8-g32", 1.3),
        ("q8_0", 1.3),
    ],
)
def test_the_error_is_near_that_of_the_best_scale(text: str, bound: float) -> None:
    """Within a bound of the best of 400 scales for every group, and below that of the full range.

    With 8 bits a few of the 400 scales fit all values of a group by chance.
    """
    generator = torch.Generator().manual_seed(0)
    weight, importance = torch.randn(40, 96, generator=generator), torch.randn(96, generator=generator).exp()
    scheme = grid_scheme(text)
    grid = GRIDS[type(scheme)]

    def rounded(levels_of: object) -> Tensor:
        levels = grid.levels(levels_of, 96, scheme)
        codes = torch.stack([levels.nearest(column, weight[:, column])[0] for column in range(96)], 1)
        return dequantize(grid.assemble(levels_of, codes.to(torch.uint8), 96, scheme))

    fitted, full = grid.fit_grid(weight, scheme, importance), grid.choose_grid(weight, scheme)
    best = torch.full((40, 3), torch.inf)
    start = grid.levels(full, 96, scheme).scale
    for share in torch.linspace(0.7, 1.2, 400).tolist():
        values = rounded(grid.rescale(full, (share * start).half().float(), scheme))
        errors = ((values - weight).square() * importance).reshape(40, 3, 32).sum(-1)
        best = best.minimum(errors)

    assert _error(rounded(fitted), weight, importance) < bound * float(best.sum())
    assert _error(rounded(fitted), weight, importance) <= _error(rounded(full), weight, importance)


def test_every_start_is_the_best_of_some_groups() -> None:
    """Each share of the full range gives the least error for at least 1 % of 400 groups of normal weights."""
    groups = torch.randn(400, 1, 32, generator=torch.Generator().manual_seed(1))
    full = groups.abs().amax(-1) / 7

    found = search_scale(
        groups, torch.ones(32), [full * share for share in SHARES], lambda _: lambda units: units.round_().clamp_(-8, 7)
    )

    assert torch.bincount(found.start.flatten(), minlength=8).min() >= 4


@pytest.mark.parametrize("text", ["int4-g32", "int4-g32-asym", "q4_0", "iq4_nl"])
def test_groups_of_zeros_have_a_finite_scale(text: str) -> None:
    """Zeros stay zero, and importance of zero gives no error."""
    weight, scheme = torch.zeros(2, 64), grid_scheme(text)
    weight[1, 40] = 3.0
    grid = GRIDS[type(scheme)]

    for importance in (torch.ones(64), torch.zeros(64)):
        levels = grid.levels(grid.fit_grid(weight, scheme, importance), 64, scheme)
        assert levels.scale.isfinite().all()
        assert float(levels.nearest(0, weight[:, 0])[1].abs().max()) <= 0.1
