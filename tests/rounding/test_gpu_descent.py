"""The descent by the kernel of a GPU, interpreted on other machines, against that of the CPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mcpmq.grids import GRIDS
from mcpmq.grids.levels import Levels
from mcpmq.rounding import descent
from mcpmq.rounding.hessian import ShrunkHessian
from tests.rounding.oracle import grid_scheme, random_layer, shrunk_hessian
from tests.triton_device import DEVICE

SCHEMES = ("int4-g16", "int4-g32-asym", "int4-row", "iq4_nl", "q4_1")


def _on_device(hessian: ShrunkHessian) -> ShrunkHessian:
    inner = hessian.hessian
    moved = replace(inner, matrix=inner.matrix.to(DEVICE), order=inner.order.to(DEVICE), energy=inner.energy.to(DEVICE))
    return replace(hessian, hessian=moved, diagonal_part=hessian.diagonal_part.to(DEVICE))


def _start(text: str, rows: int, columns: int) -> tuple[Tensor, Levels, Tensor, ShrunkHessian]:
    """Return nearest codes, their levels, half the slope of the loss, and the Hessian."""
    weight, inputs = random_layer(rows, columns, seed=columns, tokens=80)
    scheme = grid_scheme(text)
    padded, grid = scheme.padded_columns(columns), GRIDS[type(scheme)]
    levels = grid.levels(grid.choose_grid(weight, scheme), padded, scheme)
    weight = torch.nn.functional.pad(weight, (0, padded - columns)).T.contiguous()
    codes, hessian = levels.nearest_codes(weight), shrunk_hessian(inputs.T @ inputs, scheme, 0.1)
    return codes, levels, hessian.multiply(levels.values(codes) - weight), hessian


@pytest.mark.parametrize(
    ("text", "rows", "columns"), [(text, 5, 40) for text in SCHEMES] + [("int4-g32", 33, 70), ("q6_k", 5, 70)]
)
def test_the_kernel_finds_codes_of_the_same_loss(
    text: str, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all codes and scales are those of the CPU, and the others have the same loss up to rounding errors."""
    codes, levels, slope, hessian = _start(text, rows, columns)
    expected, expected_scale = descent.descend(codes, levels, slope, hessian, 1)
    monkeypatch.setattr(descent, "_has_gpu_kernel", lambda *_: True)

    arguments = codes.to(DEVICE), levels.to(DEVICE), slope.to(DEVICE), _on_device(hessian)
    found, scale = (part.cpu() for part in descent.descend(*arguments, 1))

    before = levels.values(codes)

    def decrease(codes: Tensor, scale: Tensor) -> Tensor:
        change = replace(levels, scale=scale).values(codes) - before
        return -((hessian.multiply(change) + 2 * slope) * change).sum(0)

    assert (found == expected).double().mean() > 0.97
    assert (found != codes).any()
    assert torch.allclose(decrease(found, scale), decrease(expected, expected_scale), rtol=2e-2)
    assert (decrease(found, scale) >= 0).all()
    assert torch.equal(scale, levels.scale) or levels.has_fp16_scales
    assert torch.equal(scale.half().float(), scale) or not levels.has_fp16_scales
