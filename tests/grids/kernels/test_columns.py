"""The compiled loops over columns against those of torch, which other devices and dtypes use."""

import pytest
import torch
from torch import Tensor

from mcpmq.grids import GRIDS
from mcpmq.grids.levels import Levels, has_kernels
from mcpmq.rounding import descent, ldlq
from tests.rounding.oracle import grid_scheme, random_layer, shrunk_hessian

SCHEMES = ["int4-g32", "int4-g16-asym", "int8-row", "iq4_nl", "q4_k", "q4_1"]


def _levels(weight: Tensor, text: str) -> Levels:
    scheme = grid_scheme(text)
    grid = GRIDS[type(scheme)]
    return grid.levels(grid.choose_grid(weight, scheme), weight.shape[1], scheme)


@pytest.mark.parametrize("text", SCHEMES)
def test_compiled_loops_give_the_codes_of_torch(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LDLQ and a sweep of the descent have equal codes, scales and errors, except for rounding errors of sums."""
    weight, inputs = random_layer(7, 256, tokens=600)
    levels, columns = _levels(weight, text), weight.T.contiguous()
    gram = inputs.T @ inputs
    factor = torch.eye(256) + (0.3 * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))).triu(1) / 16

    def run() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes, error = ldlq.ldlq(columns, factor, 256, lambda start, group: levels)
        hessian = shrunk_hessian(gram, grid_scheme(text), 0.1)
        slope = hessian.multiply(levels.values(codes) - columns)
        return codes, error, *descent.descend(codes, levels, slope, hessian, 1)

    compiled = run()
    for module in (ldlq, descent):
        monkeypatch.setattr(module, "has_kernels", lambda _: False)
    plain = run()

    assert has_kernels(columns)
    assert not has_kernels(columns.double())
    for one, other in zip(compiled, plain, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5)
