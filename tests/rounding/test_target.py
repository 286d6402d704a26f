"""Targets are the weights whose outputs in the quantized model are closest to those of the original, by brute force."""

import pytest
import torch
from torch import Tensor

from mcpmq.rounding import target as target_module
from mcpmq.rounding.stats import Drift, InputStats
from mcpmq.rounding.target import Target, solve_drift
from mcpmq.system.torch_threads import torch_threads
from tests.rounding.oracle import input_stats, random_layer

ROWS, COLUMNS = 10, 24


def drifted(of_outputs: bool, tokens: int = 300, held_out: int = 40) -> tuple[Tensor, Tensor, Tensor, InputStats]:
    """A weight, inputs, their drift (or that of a residual stream), and the statistics with drift."""
    weight, inputs = random_layer(ROWS, COLUMNS, tokens=tokens + held_out)
    generator = torch.Generator().manual_seed(1)
    mixed = inputs @ torch.randn(COLUMNS, ROWS if of_outputs else COLUMNS, generator=generator)
    difference = 0.1 * mixed + 0.3 * torch.randn(mixed.shape, generator=generator)
    stats = input_stats(inputs[:tokens])
    drift = Drift(of_outputs, inputs[:tokens].T @ difference[:tokens], difference[tokens:])
    fields = {name: getattr(stats, name) for name in InputStats.__slots__}
    return weight, inputs, difference, InputStats(**{**fields, "held_out_inputs": inputs[tokens:], "drift": drift})


def expected(weight: Tensor, inputs: Tensor, difference: Tensor, of_outputs: bool) -> Tensor:
    """The target in float64: row by row the solution of the normal equations, with shrinkage 2n / (2n + tokens).

    Products of the drift are shrunk as products of different columns.
    """
    x, e = inputs.double(), difference.double()
    gram, shrinkage = x.T @ x, 2 * COLUMNS / (2 * COLUMNS + len(x))
    diagonal = gram.diagonal()
    hessian = (1 - shrinkage) * gram + torch.diag(shrinkage * diagonal + 0.01 * diagonal.mean())
    rows = []
    for index, row in enumerate(weight.double()):
        missing = e[:, index] if of_outputs else e @ row
        rows.append(row + torch.linalg.solve(hessian, (1 - shrinkage) * x.T @ missing))
    return torch.stack(rows)


@pytest.mark.parametrize("of_outputs", [False, True])
def test_the_target_solves_the_normal_equations(of_outputs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For drift of inputs and of the residual stream, whole or in chunks of rows, with tiles that do not fit."""
    monkeypatch.setattr(target_module, "TILE_COLUMNS", 7)
    weight, inputs, difference, stats = drifted(of_outputs)
    solution = expected(weight, inputs[:300], difference[:300], of_outputs)

    solve_drift(stats)

    chunks = [Target.create(rows, stats, first) for rows, first in ((weight[:3], 0), (weight[3:], 3))]
    found = torch.cat([one.weight for one in chunks])
    assert float((found - solution).abs().max()) < 1e-4 * float(solution.abs().max())
    assert float((solution - weight).norm()) > 0.05 * float(weight.norm())
    assert torch.equal(torch.cat([one.original for one in chunks]), weight)


@pytest.mark.parametrize("of_outputs", [False, True])
def test_missing_outputs_are_those_of_the_held_out_inputs(of_outputs: bool) -> None:
    """They are the outputs of the original model minus those of the target on inputs of the quantized model."""
    weight, inputs, difference, stats = drifted(of_outputs)
    solve_drift(stats)

    found = Target.create(weight[2:], stats, 2)

    x, e = inputs[300:], difference[300:]
    outputs = x @ weight[2:].T + (e[:, 2:] if of_outputs else e @ weight[2:].T)
    assert found.missing is not None
    assert torch.allclose(found.missing, outputs - x @ found.weight.T, atol=1e-3)
    assert float(found.missing.norm()) < float((outputs - x @ weight[2:].T).norm())
    taken = found.take(torch.tensor([4, 1]), torch.device("cpu"))
    assert taken.missing is not None
    assert torch.equal(taken.missing, found.missing[:, [4, 1]])
    assert torch.equal(taken.weight, found.weight[[4, 1]])


@pytest.mark.parametrize("magnitude", [1.0, 2.0**-30])
def test_the_hessian_is_unchanged_after_its_factor_was_in_its_memory(magnitude: float) -> None:
    """Every entry has its bits, also those of inputs that are scaled before the factorization."""
    _, _, _, stats = drifted(of_outputs=False)
    stats.gram.mul_(magnitude)
    before, products = stats.gram.clone(), stats.drift.products.clone() if stats.drift else None

    solve_drift(stats)

    assert torch.equal(stats.gram, before)
    assert stats.drift is not None
    assert products is not None
    assert not torch.equal(stats.drift.products, products)


def test_without_drift_the_target_is_the_weight() -> None:
    """Without drift, and without any input, nothing is solved."""
    weight, inputs = random_layer(ROWS, COLUMNS)
    stats = input_stats(inputs)
    solve_drift(stats)
    assert Target.create(weight, stats, 0).weight is weight

    products = torch.ones(COLUMNS, COLUMNS)
    fields = {name: getattr(input_stats(0 * inputs), name) for name in InputStats.__slots__}
    solve_drift(InputStats(**{**fields, "drift": Drift(False, products)}))
    assert torch.equal(products, torch.ones(COLUMNS, COLUMNS))


def test_threads_do_not_change_the_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """One and three threads give the same bits."""
    monkeypatch.setattr(target_module, "TILE_COLUMNS", 5)
    found = []
    for threads in (1, 3):
        stats = drifted(of_outputs=False)[3]
        with torch_threads(threads):
            solve_drift(stats)
        assert stats.drift is not None
        found.append(stats.drift.products)

    assert torch.equal(*found)
