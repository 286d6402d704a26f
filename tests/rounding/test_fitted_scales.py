"""Fitted scales: the gradient is that of autograd, the pivots those of a factor, and folded scales are undone."""

from functools import partial

import pytest
import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import serial_map
from mcpmq.families.family import SmoothingMapping
from mcpmq.grids import dequantize
from mcpmq.rounding import ROUNDING_FUNCTIONS, fitted_scales
from mcpmq.rounding.fitted_scales import column_pivots, fit_log_scales, log_error_gradient
from mcpmq.rounding.smoothing import BalanceLayer, Channels, fitted_scale, search_scales
from tests.rounding.oracle import grid_scheme, input_stats, random_layer

NO_MAPPING = SmoothingMapping("", "", ())


def _log_error(logs: Tensor, costs: Tensor, matrices: list[Tensor], group: int) -> Tensor:
    """The logarithm of the expected error, term by term, with a smooth maximum."""
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(logs), group):
        columns = slice(start, start + group)
        cost = (costs[columns] / (2 * logs[columns]).exp()).sum()
        for matrix in matrices:
            scaled = (matrix[:, columns].abs() * logs[columns].exp()).pow(8).sum(1)
            total = total + cost * scaled.pow(1 / 4).sum()
    return total.log()


@pytest.mark.parametrize("columns", [12, 10])
def test_the_gradient_is_that_of_the_expected_error(columns: int) -> None:
    """Two matrices, groups of four, the last of which may be shorter."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, generator=generator, dtype=torch.float64)
    costs, logs = draw(columns) + 0.1, draw(columns) - 0.5
    matrices = [draw(5, columns) + 0.2, 3 * draw(7, columns) + 0.2]
    normalized = [one / one.square().mean().sqrt() for one in matrices]

    found = log_error_gradient(logs, costs, [fitted_scales._raise(one, 4) for one in matrices])

    variable = logs.clone().requires_grad_()
    _log_error(variable, costs, normalized, 4).backward()
    assert variable.grad is not None
    assert float(found.abs().max()) > 0.01
    torch.testing.assert_close(found, variable.grad, rtol=1e-9, atol=1e-12)


def test_pivots_are_those_of_the_factored_hessian() -> None:
    """In float64 by elimination in the order of decreasing energy; the Hessian keeps its bits."""
    _, inputs = random_layer(4, 24, tokens=300)
    stats = input_stats(inputs)
    before = stats.gram.clone()

    found = column_pivots(stats)

    shrinkage, diagonal = 48 / (48 + 300), before.diagonal().double()
    hessian = (1 - shrinkage) * before.double() + torch.diag(shrinkage * diagonal + 0.01 * diagonal.mean())
    order = diagonal.argsort(descending=True)
    for position, column in enumerate(order.tolist()):
        later = order[position + 1 :]  # compensate its error
        cross = hessian[later, column]
        pivot = hessian[column, column] - cross @ torch.linalg.solve(hessian[later][:, later], cross)
        assert float(found[column]) == pytest.approx(float(pivot), rel=1e-4)
    assert torch.equal(stats.gram, before)


def _folded_layer(columns: int = 64) -> tuple[BalanceLayer, Tensor, Tensor]:
    """A layer whose columns were divided, and inputs multiplied, by factors of up to 30; the layer, inputs, factors."""
    weight, inputs = random_layer(32, columns, tokens=600)
    factors = (3.4 * torch.rand(columns, generator=torch.Generator().manual_seed(5)) - 1.7).exp()
    return BalanceLayer(weight / factors, grid_scheme("int4-g32"), input_stats(inputs * factors)), inputs, factors


def test_scales_undo_a_fold() -> None:
    """They lower the error of GPTQ's outputs below a third, close to that of the layer without the fold."""
    layer, inputs, factors = _folded_layer()

    found = search_scales(NO_MAPPING, "fitted", [layer], Channels(64, 32), True, serial_map)

    assert found is not None
    assert found.exponent == 1
    errors = {}
    for name, scale in (("none", torch.ones(64)), ("fitted", found.column_scale), ("unfolded", factors)):
        scaled, divided = layer.weight * scale, inputs * factors / scale
        rounded = dequantize(ROUNDING_FUNCTIONS["gptq"](scaled, layer.scheme, input_stats(divided)))
        errors[name] = float((divided @ rounded.T - divided @ scaled.T).square().sum())
    assert errors["fitted"] < errors["none"] / 3
    assert errors["fitted"] < 1.3 * errors["unfolded"]


def test_every_head_of_a_group_has_the_scales_of_its_values() -> None:
    """Two heads share the channels of one: the scales of their columns are equal."""
    layer, _, _ = _folded_layer()
    channels = Channels(32, 32)

    columns = channels.expand(fitted_scale([layer], channels), 64)

    assert torch.equal(columns[:32], columns[32:])
    assert float(columns.max() / columns.min()) > 1.5


def test_channels_without_inputs_have_no_scale() -> None:
    """Zeros in the inputs give a scale of 1, and all others are finite; without any input all are 1."""
    weight, inputs = random_layer(8, 64, tokens=200)
    inputs[:, 3] = 0
    dead = BalanceLayer(weight, grid_scheme("int4-g32"), input_stats(torch.zeros(20, 64)))
    assert fitted_scale([dead], Channels(64, 32)).tolist() == [1.0] * 64

    scale = fitted_scale([BalanceLayer(weight, grid_scheme("int4-g32"), input_stats(inputs))], Channels(64, 32))

    assert scale[3] == 1
    assert bool((scale > 0).all() and scale.isfinite().all())


def test_weights_of_zero_and_of_very_different_magnitudes_give_finite_scales() -> None:
    """A matrix of zeros counts nothing beside another one."""
    matrices = [torch.zeros(4, 8), torch.logspace(-30, 3, 32).reshape(4, 8)]

    logs = fit_log_scales(matrices, torch.ones(8), 4, lambda values: values, lambda values: values, 8)

    assert bool(logs.isfinite().all())
    assert float(logs.abs().max()) > 0.1
