"""A block is rounded in every way asked for, and what the judge prefers is kept and told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mcpmq.calibrate.block import Stats, Trial, scales_of
from mcpmq.calibrate.selection import Judge, candidates
from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.chunked_matmul import one_by_one
from mcpmq.execution.torch_model import Stored
from mcpmq.grids import dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Findings
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDERS
from tests.rounding.oracle import sample_layer, stats_of

BLOCK = "language.layers.1"
WAYS = ["importance", "gptq", "awq+importance", "awq+gptq"]


@pytest.fixture(scope="module")
def plan(tiny_checkpoint: Path) -> Plan:
    """Everything that can be tried."""
    recipe = {"name": "all", "round": "best", "smooth": "awq", "weights": {"language.*": "int4-g32"}}
    return make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(recipe))


def seen(plan: Plan) -> Stats:
    """Inputs of very different sizes; what a norm feeds sees the same."""
    stats: Stats = {}
    for fold in plan.folds[BLOCK]:
        columns = 512 if fold.into[0].endswith("down") else 256
        same = (stats_of(sample_layer(1, columns, seed=len(fold.into))[1]),)
        stats |= dict.fromkeys(fold.into, same)
    return stats


def tried(plan: Plan, judge: Judge | None, ways: int = 4) -> tuple[Trial, dict[str, Stored], Findings]:
    weights = {step.name: plan.checkpoint.load(step.spec).float() for step in plan.blocks[BLOCK]}
    stats = seen(plan)
    trial = Trial(plan, BLOCK, stats, scales_of(plan, BLOCK, weights, stats, one_by_one), 1)
    return trial, *trial.best(candidates(plan.recipe, smoothing=True)[:ways], judge)


def listening(errors: list[float]) -> tuple[Judge, list[Mapping[str, Stored]]]:
    """A judge that says these, one after the other, and keeps what it was shown."""
    left, shown = iter(errors), []

    def judge(weights: Mapping[str, Stored], _: Any) -> float:
        shown.append(weights)
        return next(left)

    return judge, shown


@pytest.mark.parametrize(
    ("errors", "chosen"), [([2, 1, 3, 4], 1), ([1, 1, 1, 1], 0), ([4, 2, 2, 2], 1), ([4, 3, 2, 1], 3)]
)
def test_the_least_error_wins_and_of_equals_the_simplest(plan: Plan, errors: list[float], chosen: int) -> None:
    """What is kept is what was judged; the findings name every way and its error."""
    judge, shown = listening(errors)

    trial, kept, findings = tried(plan, judge)

    assert kept is shown[chosen]
    assert findings.errors == dict(zip(WAYS, errors, strict=True))
    up = findings.weights[f"{BLOCK}.mlp.up"]
    assert up["round"] == WAYS[chosen].removeprefix("awq+")
    assert ("smooth" in up) == WAYS[chosen].startswith("awq")
    assert trial.stats == {}


def test_every_way_rounds_what_it_should(plan: Plan) -> None:
    """Plain ways the weights as they are, smoothing ones scaled weights by scaled statistics: dequantized and with the
    scales taken back, all are near the original."""
    judge, shown = listening([4, 3, 2, 1])
    trial, _, _ = tried(plan, judge)
    name = f"{BLOCK}.mlp.up"
    step = next(step for step in plan.steps if step.name == name)
    weight = plan.checkpoint.load(step.spec)
    columns = next(scales.columns for scales in trial.scales if name in scales.fold.into)
    rows = next(scales.channels for scales in trial.scales if scales.fold.source == name)

    [plain] = seen(plan)[name]
    expected = ROUNDERS["gptq"](weight, step.scheme, plain)  # type: ignore[arg-type]
    assert torch.equal(_codes(shown[1][name]), expected.codes)

    [scaled] = seen(plan)[name]
    scaled.gram.div_(columns).div_(columns[:, None])
    for number, method in ((2, "importance"), (3, "gptq")):
        found = shown[number][name]
        assert isinstance(found, QTensor)
        expected = ROUNDERS[method](weight.float() * columns / rows[:, None], step.scheme, scaled)  # type: ignore[index, arg-type]
        assert torch.equal(found.codes, expected.codes)
        assert (dequantize(found) * rows[:, None] / columns - weight).norm() < 0.5 * weight.norm()


def _codes(weight: Stored) -> torch.Tensor:
    assert isinstance(weight, QTensor)
    return weight.codes


def test_norms_take_the_scales_in_32_bits(plan: Plan) -> None:
    """Stored so that nothing is rounded: divided where scales move, as they were where not."""
    judge, shown = listening([4, 3, 2, 1])
    trial, _, _ = tried(plan, judge)
    name = f"{BLOCK}.input_norm"
    norm = plan.checkpoint.load(next(step.spec for step in plan.steps if step.name == name)).float()
    channels = next(scales.channels for scales in trial.scales if scales.fold.source == name)

    assert shown[0][name].dtype is torch.float32  # type: ignore[union-attr]
    assert torch.equal(shown[0][name], norm)  # type: ignore[arg-type]
    assert torch.equal(shown[3][name], norm / channels)  # type: ignore[arg-type]


def test_one_way_needs_no_judge(plan: Plan) -> None:
    """It is taken, and no error is told."""
    _, _, findings = tried(plan, None, ways=1)

    assert findings.errors == {}
    assert {fields["round"] for fields in findings.weights.values()} == {"importance"}
