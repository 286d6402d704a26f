"""Held-out samples judge by what a block really puts out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mcpmq.calibrate import selection
from mcpmq.calibrate.observers import Labels
from mcpmq.calibrate.selection import by_gram, by_outputs, candidates, held_out
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CalibrationError
from mcpmq.execution.chunked_matmul import one_by_one
from mcpmq.execution.torch_model import NativeModel
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDERS
from mcpmq.scheme import parse_scheme
from tests.rounding.oracle import scheme_of, stats_of


@pytest.mark.parametrize(
    ("smooth", "rounding", "with_folds", "without"),
    [
        ("none", "gptq", ["gptq"], ["gptq"]),
        ("none", "best", ["importance", "gptq"], ["importance", "gptq"]),
        ("awq", "rtn", ["rtn", "awq+rtn"], ["rtn"]),
        ("smoothquant", "gptq", ["gptq", "smoothquant+gptq"], ["gptq"]),
        ("awq", "best", ["importance", "gptq", "awq+importance", "awq+gptq"], ["importance", "gptq"]),
    ],
)
def test_what_is_tried_begins_with_the_simplest(
    smooth: Any, rounding: Any, with_folds: list[str], without: list[str]
) -> None:
    """Every rounder, without and with smoothing where scales can move."""
    recipe = Recipe(name="x", smooth=smooth, round=rounding, weights={"*": parse_scheme("int8-row")})

    assert [str(one) for one in candidates(recipe, smoothing=True)] == with_folds
    assert [str(one) for one in candidates(recipe, smoothing=False)] == without


@given(st.lists(st.sampled_from(["image", "text"]), max_size=40))
def test_of_each_kind_one_in_five_judges_and_most_decide(kinds: list[str]) -> None:
    """At least one where there are two, never the only one."""
    judges = held_out(kinds)

    for kind in ("image", "text"):
        count = kinds.count(kind)
        judging_of_it = sum(kinds[number] == kind for number in judges)
        assert judging_of_it == (max(1, count // 5) if count > 1 else 0)


# --- a block by its outputs ------------------------------------------------------------------------------------------

SAMPLES = [torch.randn(tokens, 8, generator=torch.Generator().manual_seed(tokens)) for tokens in (3, 5)]
WEIGHTS = torch.tensor([0.0, 1.0, 4.0])


def _kinds(count: int) -> Tensor:
    return (torch.arange(count) % 3).to(torch.uint8)


class _Two(nn.Module):
    """A block of two linears that hands on a tuple, as decoder layers may."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, None]:
        return rows + self.two(torch.relu(self.one(rows)))[None][0], None


@pytest.fixture
def block() -> _Two:
    """With weights of its own."""
    torch.manual_seed(0)
    return _Two()


def _specs() -> dict[str, TensorSpec]:
    return {f"{name}.weight": TensorSpec(f"a.{name}", name, (8, 8), "matrix") for name in ("one", "two")}


@pytest.mark.parametrize("reaches", [{}, {"a.two": 2.0}])
def test_a_block_is_judged_by_its_weighted_outputs(block: _Two, reaches: dict[str, float]) -> None:
    """Square error over square, token by token with its weight, by hand; with inputs in 8 bits where that is asked."""
    one, two = block.one.weight.detach().clone(), block.two.weight.detach().clone()

    def replay() -> None:
        for rows in SAMPLES:
            block(rows)

    with torch.inference_mode():
        judge = by_outputs(NativeModel(block, {block: _specs()}), block, replay, Labels(_kinds, WEIGHTS))
        found = judge({"a.one": one.round(decimals=1), "a.two": two}, reaches)

    error = whole = 0.0
    for rows in SAMPLES:
        inner = torch.relu(rows @ one.round(decimals=1).T)
        if reaches:
            inner = (inner * 127 / 2).round().clamp(-127, 127) / 127 * 2
        expected = rows + torch.relu(rows @ one.T) @ two.T
        weights = WEIGHTS[_kinds(len(rows)).long()][:, None]
        error += float((weights * (rows + inner @ two.T - expected).square()).sum())
        whole += float((weights * expected.square()).sum())
    assert found == pytest.approx(error / whole, rel=1e-4)
    assert all(parameter.detach().isnan().all() for parameter in block.parameters())  # left empty, as it has to be


def test_judges_that_weigh_nothing_are_refused(block: _Two) -> None:
    """No answer is better than none if nobody listens."""
    labels = Labels(lambda count: torch.zeros(count, dtype=torch.uint8), WEIGHTS)

    with torch.inference_mode(), pytest.raises(CalibrationError, match="held out to judge by weigh nothing"):
        by_outputs(NativeModel(block, {block: _specs()}), block, lambda: [block(rows) for rows in SAMPLES], labels)


def test_a_head_is_judged_by_what_it_sees(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number as from all its outputs, in pieces of any size."""
    monkeypatch.setattr(selection, "PIECE_WEIGHTS", 256 * 100)
    monkeypatch.setattr(selection, "PIECE_ROWS", 70)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    spec = next(one for one in checkpoint.specs if one.name == "head")
    weight = checkpoint.load(spec).float()
    inputs = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
    rounded = ROUNDERS["rtn"](weight, scheme_of("int4-g32-asym"), None)

    found = by_gram(checkpoint, spec, stats_of(inputs), one_by_one)({"head": rounded}, {})

    expected = inputs @ weight.T
    error = (inputs @ dequantize(rounded).T - expected).square().sum() / expected.square().sum()
    assert found == pytest.approx(float(error), rel=1e-4)
