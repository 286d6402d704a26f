"""Group descent against an exhaustive search of single changes, plain GPTQ, and rescaled channels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcpmq.grids import GRIDS, dequantize
from mcpmq.grids.levels import Levels
from mcpmq.rounding import gptq
from mcpmq.rounding.descent import descend
from tests.rounding.oracle import SCHEMES, grid_scheme, input_stats, random_layer, shrunk_hessian


def _hessian(gram: Tensor, shrinkage: float) -> Tensor:
    """Return the shrunk and damped Hessian: float64 [columns, columns]."""
    diagonal = gram.double().diagonal()
    damping = 0.01 * diagonal[diagonal > 0].mean() * torch.eye(len(gram), dtype=torch.float64)
    return (1 - shrinkage) * gram.double() + shrinkage * diagonal.diag() + damping


def _losses(error: Tensor, hessian: Tensor) -> Tensor:
    return ((error.double() @ hessian) * error.double()).sum(1)


def _start(text: str, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Levels]:
    """Return a weight [columns, rows], a Hessian of its inputs, and its nearest codes with their levels."""
    weight, inputs = random_layer(rows, columns, seed, tokens=40)
    scheme = grid_scheme(text)
    grid = GRIDS[type(scheme)]
    padded = scheme.padded_columns(columns)
    levels = grid.levels(grid.choose_grid(weight, scheme), padded, scheme)
    weight = torch.nn.functional.pad(weight, (0, padded - columns)).T.contiguous()
    codes = torch.stack([levels.nearest(column, weight[column])[0] for column in range(padded)])
    return weight, inputs.T @ inputs, codes.to(torch.uint8), levels


def _descend(
    weight: Tensor, gram: Tensor, codes: Tensor, levels: Levels, sweeps: int, text: str
) -> tuple[Tensor, Levels]:
    hessian = shrunk_hessian(gram, grid_scheme(text), 0.1)
    codes, scale = descend(codes, levels, hessian.multiply(levels.values(codes) - weight), hessian, sweeps)
    return codes, replace(levels, scale=scale)


@pytest.mark.parametrize(
    "text", ["int4-g16", "int4-g32-asym", "int4-row", "iq4_nl", "q4_1", "q6_k", "iq4_xs", "q3_k", "q2_k"]
)
def test_the_descent_ends_where_no_single_code_lowers_the_loss(text: str) -> None:
    """After many sweeps every code of every column has been tried: none is better by more than rounding errors."""
    weight, gram, codes, levels = _start(text, 3, 48)

    codes, levels = _descend(weight, gram, codes, levels, 60, text)

    hessian = torch.zeros(len(weight), len(weight), dtype=torch.float64)
    hessian[:48, :48] = _hessian(gram, 0.1)
    loss = _losses((levels.values(codes) - weight).T, hessian)
    for column in range(48):
        for code in range(levels.qmin, levels.qmax + 1):
            changed = codes.clone()
            changed[column] = code
            assert (_losses((levels.values(changed) - weight).T, hessian) > loss * (1 - 1e-5)).all()


@pytest.mark.parametrize("text", ["int4-g16", "iq4_nl"])
def test_scales_have_the_least_loss_for_their_codes(text: str) -> None:
    """At the end no fp16 number next to a scale is better."""
    weight, gram, codes, levels = _start(text, 3, 64)

    codes, levels = _descend(weight, gram, codes, levels, 60, text)

    hessian = _hessian(gram, 0.1)
    loss = _losses((levels.values(codes) - weight).T, hessian)
    for group in range(len(levels.scale)):
        for step in (-1, 1):
            scale = levels.scale.clone()
            scale[group] = (scale[group].half().view(torch.int16) + step).view(torch.float16).float()
            changed = replace(levels, scale=scale)
            assert (_losses((changed.values(codes) - weight).T, hessian) > loss * (1 - 1e-5)).all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(1, 4), st.integers(1, 300), st.integers(0, 3), st.integers(0, 99))
def test_no_row_gets_worse(text: str, rows: int, columns: int, sweeps: int, seed: int) -> None:
    """For any shape and grid; scales that a grid does not store by itself stay the same."""
    weight, gram, codes, levels = _start(text, rows, columns, seed)

    improved, found = _descend(weight, gram, codes, levels, sweeps, text)

    hessian = _hessian(gram, 0.1)
    before, after = (
        _losses((one.values(part) - weight)[:columns].T, hessian) for one, part in ((levels, codes), (found, improved))
    )
    assert (after <= before * (1 + 1e-5) + 1e-12).all()
    assert torch.equal(found.scale.half().float(), found.scale) or not levels.has_fp16_scales
    assert torch.equal(found.scale, levels.scale) or levels.has_fp16_scales
    assert sweeps or torch.equal(improved, codes)


@pytest.mark.parametrize("text", SCHEMES)
def test_the_training_loss_is_below_that_of_plain_gptq(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same Hessian the descent improves every row of GPTQ, or leaves it."""
    weight, inputs = random_layer(16, 300)
    stats, scheme = replace(input_stats(inputs), shrinkage=0.1), grid_scheme(text)
    improved = dequantize(gptq.quantize(weight, scheme, stats))
    monkeypatch.setattr(gptq, "SWEEPS", 0)

    plain = dequantize(gptq.quantize(weight, scheme, stats))

    hessian = _hessian(stats.gram, 0.1)
    losses, plain_losses = _losses(improved - weight, hessian), _losses(plain - weight, hessian)
    assert (losses <= plain_losses * (1 + 1e-5)).all()
    assert losses.sum() < plain_losses.sum()


def test_rescaled_channels_have_the_same_shrunk_correlations() -> None:
    """Shrinkage multiplies every correlation of two channels by the same factor, for channels of any magnitude."""
    _, inputs = random_layer(1, 40)
    scale = torch.randn(40, generator=torch.Generator().manual_seed(5)).exp2()

    def correlations(rows: Tensor) -> Tensor:
        shrunk = shrunk_hessian(rows.T @ rows, grid_scheme("int4-g16"), 0.3)
        roots = (rows.square().sum(0) * shrunk.hessian.scale).sqrt()
        product = shrunk.multiply(torch.eye(40)) - shrunk.multiply(torch.eye(40)).diagonal().diag()
        return product / roots / roots[:, None]

    assert torch.allclose(correlations(inputs), correlations(inputs * scale), atol=1e-5)


def test_equal_chunks_of_rows_have_equal_results() -> None:
    """A row does not depend on the others beside it."""
    weight, gram, codes, levels = _start("int4-g32", 6, 96)

    whole, found = _descend(weight, gram, codes, levels, 2, "int4-g32")

    half = replace(levels, scale=levels.scale[:, :3], zero_point=levels.zero_point[:, :3])
    part, _ = _descend(weight[:, :3].contiguous(), gram, codes[:, :3].contiguous(), half, 2, "int4-g32")
    assert (whole[:, :3] == part).double().mean() > 0.99
    assert found.scale.shape == levels.scale.shape
