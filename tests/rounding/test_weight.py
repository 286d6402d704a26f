"""One weight is rounded by as many statistics as its rows have kinds of input."""

from pathlib import Path

import pytest
import torch

from mcpmq.checkpoint import Checkpoint
from mcpmq.plan import Plan, Step, make_plan
from mcpmq.qtensor import QTensor
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDERS
from mcpmq.rounding import weight as carrying_out
from mcpmq.rounding.stats import LayerStats
from mcpmq.rounding.weight import rounded
from mcpmq.scheme import IntegerScheme
from tests.rounding.oracle import stats_of


@pytest.fixture
def plan(tiny_checkpoint: Path) -> Plan:
    """The tiny checkpoint, to be calibrated-int4."""
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-int4"))


def step_of(plan: Plan, name: str) -> Step:
    return next(step for step in plan.steps if step.name == name)


def stats(columns: int, seed: int) -> LayerStats:
    return stats_of(torch.randn(2 * columns, columns, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("piece", [1 << 27, 256 * 100])
def test_one_for_all_rows(plan: Plan, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are read at a time."""
    monkeypatch.setattr(carrying_out, "SEEING_PIECE_WEIGHTS", piece)
    step, seen = step_of(plan, "head"), stats(256, 0)
    assert isinstance(step.scheme, IntegerScheme)

    found = rounded(plan, step, (seen,), "gptq")

    assert isinstance(found, QTensor)
    assert torch.equal(found.codes, ROUNDERS["gptq"](plan.checkpoint.load(step.spec), step.scheme, seen).codes)


def test_three_for_a_third_of_the_rows_each(plan: Plan) -> None:
    """Queries, keys and values of a packed projection, in this order."""
    step, seen = step_of(plan, "projector.attention.qkv"), [stats(256, seed) for seed in range(3)]
    assert isinstance(step.scheme, IntegerScheme)

    found = rounded(plan, step, seen, "gptq")

    assert isinstance(found, QTensor)
    weight = plan.checkpoint.load(step.spec)
    for number, one in enumerate(seen):
        rows = slice(256 * number, 256 * number + 256)
        assert torch.equal(found.codes[rows], ROUNDERS["gptq"](weight[rows], step.scheme, one).codes)


def test_none_is_rounding_to_nearest(plan: Plan) -> None:
    """As a table is rounded under any recipe."""
    step = step_of(plan, "embedding")
    assert isinstance(step.scheme, IntegerScheme)

    found = rounded(plan, step)

    assert isinstance(found, QTensor)
    assert torch.equal(found.codes, ROUNDERS["rtn"](plan.checkpoint.load(step.spec), step.scheme, None).codes)
