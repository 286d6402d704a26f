"""GPTQ and descent where the codes of several columns are chosen together."""

from dataclasses import replace

import pytest
import torch

from mcpmq.grids import dequantize, ggml
from mcpmq.grids.levels import Levels
from mcpmq.grids.vector_table import vector_table
from mcpmq.rounding import gptq
from mcpmq.rounding.descent import descend, vector_order
from mcpmq.rounding.ldlq import ldlq
from mcpmq.scheme import GgmlScheme
from tests.rounding.oracle import input_stats, random_layer, shrunk_hessian

SCHEME = GgmlScheme("iq3_s")


def _levels(weight: torch.Tensor) -> Levels:
    return ggml.levels(ggml.choose_grid(weight, SCHEME), weight.shape[1], SCHEME)


def _is_in_table(codes: torch.Tensor, levels: Levels) -> bool:
    vectors = {tuple(vector) for vector in vector_table().vectors.tolist()}
    magnitudes = levels.units(codes).abs().T.reshape(-1, 4)
    return {tuple(vector) for vector in magnitudes.tolist()} <= vectors


def test_vectors_are_rounded_with_all_earlier_errors_compensated() -> None:
    """The returned error is that of the loop over columns, and every vector is near the best one for its targets."""
    generator, columns = torch.Generator().manual_seed(1), 256
    weight = torch.randn(columns, 6, generator=generator)
    unit_upper = torch.eye(columns) + (0.3 * torch.randn(columns, columns, generator=generator)).triu(1) / 16
    pivots, levels = torch.rand(columns, generator=generator) + 0.5, _levels(weight.T)

    codes, rounding_error = ldlq(weight, unit_upper, columns, lambda start, _: levels, pivots)

    errors = weight - levels.values(codes)
    assert torch.allclose(rounding_error, -unit_upper.T @ errors, atol=1e-5)
    assert _is_in_table(codes, levels)
    own = slice(128, 132)
    for index in range(0, 512, 7):
        other = errors.clone()
        signs = levels.units(codes[own].repeat(64, 1))[:4].sign()
        values = signs * torch.from_numpy(vector_table().vectors[index])[:, None] * levels.scale[4]
        other[own] = weight[own] - values
        before, after = ((unit_upper.T @ part)[own].square() * pivots[own, None] for part in (errors, other))
        assert (before.sum(0) <= after.sum(0) * 1.02 + 1e-9).all()


def test_the_columns_of_a_vector_stay_together() -> None:
    """The order is by the energy of all four."""
    energy = torch.tensor([9.0, 0, 0, 0, 3, 3, 3, 3, 1, 1, 1, 1])

    assert vector_order(energy, 4).tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11]
    assert vector_order(energy, 1).tolist()[:2] == [0, 4]


@pytest.mark.parametrize("columns", [20, 100, 300])
def test_the_descent_improves_every_row_or_leaves_it(columns: int) -> None:
    """The vectors stay in the table, and the scales do not change."""
    weight, inputs = random_layer(8, columns)
    gram, padded = inputs.T @ inputs, SCHEME.padded_columns(columns)
    hessian = shrunk_hessian(gram, SCHEME, 0.1)
    filled = torch.nn.functional.pad(weight, (0, padded - columns))
    quantized = ggml.quantize(filled, SCHEME)
    levels, codes = _levels(filled), ggml.unpack_codes(quantized.blocks, SCHEME).T.contiguous()
    error = levels.values(codes) - filled.T

    improved, scale = descend(codes, levels, hessian.multiply(error), hessian, 2)

    before, after = ((part * hessian.multiply(part)).sum(0) for part in (error, levels.values(improved) - filled.T))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    assert torch.equal(scale, levels.scale)
    assert _is_in_table(improved, levels)


@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_improves_the_outputs(act_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descent lowers the loss further, and the written blocks have the values of the codes."""
    weight, inputs = random_layer(40, 300)
    stats = replace(input_stats(inputs), shrinkage=0.1)

    def error() -> float:
        values = dequantize(gptq.quantize(weight, SCHEME, stats, act_order))
        return float((inputs @ (values - weight).T).square().sum())

    improved = error()
    monkeypatch.setattr(gptq, "SWEEPS", 0)
    plain = error()

    nearest = float((inputs @ (dequantize(ggml.quantize(weight, SCHEME)) - weight).T).square().sum())
    assert improved < plain < 0.3 * nearest
