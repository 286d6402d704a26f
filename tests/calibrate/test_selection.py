"""The loss of a block is the relative squared error of its outputs on held-out samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mcpmq.calibrate import selection
from mcpmq.calibrate.observers import TokenModalities
from mcpmq.calibrate.selection import candidates, held_out_samples, hessian_mse, output_mse
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError
from mcpmq.execution.chunked_matmul import serial_map
from mcpmq.execution.torch_model import TorchModel
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.scheme import parse_scheme
from tests.rounding.oracle import grid_scheme, input_stats


@pytest.mark.parametrize(
    ("smooth", "method", "with_mapping", "without"),
    [
        ("none", "gptq", ["gptq"], ["gptq"]),
        ("none", "auto", ["rtn-imatrix", "gptq"], ["rtn-imatrix", "gptq"]),
        ("awq", "rtn", ["rtn", "awq+rtn"], ["rtn"]),
        ("smoothquant", "gptq", ["gptq", "smoothquant+gptq"], ["gptq"]),
        ("awq", "auto", ["rtn-imatrix", "gptq", "awq+rtn-imatrix", "awq+gptq"], ["rtn-imatrix", "gptq"]),
    ],
)
def test_candidates_begin_with_the_simplest(
    smooth: Any, method: Any, with_mapping: list[str], without: list[str]
) -> None:
    """Every method, without and with smoothing if the block has a smoothing mapping."""
    recipe = Recipe(name="x", smooth=smooth, method=method, weights={"*": parse_scheme("int8-row")})

    assert [str(one) for one in candidates(recipe, can_smooth=True)] == with_mapping
    assert [str(one) for one in candidates(recipe, can_smooth=False)] == without


@given(st.lists(st.sampled_from(["image", "text"]), max_size=40))
def test_one_in_five_samples_of_each_modality_is_held_out(modalities: list[str]) -> None:
    """At least one of two is held out, never the only one."""
    indices = held_out_samples(modalities)

    for modality in ("image", "text"):
        count = modalities.count(modality)
        held_out = sum(modalities[index] == modality for index in indices)
        assert held_out == (max(1, count // 5) if count > 1 else 0)


def test_every_fifth_sample_is_held_out() -> None:
    """The fifth and the tenth of eleven; of four samples the last."""
    assert held_out_samples(["image"] * 11) == {4, 9}
    assert held_out_samples(["text"] * 4) == {3}


# --- loss of a block from its outputs ---------------------------------------------------------------------------------

SAMPLES = [torch.randn(tokens, 8, generator=torch.Generator().manual_seed(tokens)) for tokens in (3, 5)]
WEIGHTS = torch.tensor([0.0, 1.0, 4.0])


def _modality_ids(count: int) -> Tensor:
    return (torch.arange(count) % 3).to(torch.uint8)


class _Two(nn.Module):
    """A block of two linears that returns a tuple, as decoder layers may."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, None]:
        return rows + self.two(torch.relu(self.one(rows)))[None][0], None


@pytest.fixture
def block() -> _Two:
    """A block with random weights."""
    torch.manual_seed(0)
    return _Two()


def _specs() -> dict[str, TensorSpec]:
    return {f"{name}.weight": TensorSpec(f"a.{name}", name, (8, 8), "matrix") for name in ("one", "two")}


@pytest.mark.parametrize("input_abs_max", [{}, {"a.one": 0.7}, {"a.two": 2.0}, {"a.one": 0.7, "a.two": 2.0}])
def test_the_loss_is_the_weighted_relative_error(block: _Two, input_abs_max: dict[str, float]) -> None:
    """The squared error over the square of the outputs, weighted by token, with 8-bit inputs where requested."""
    one, two = block.one.weight.detach().clone(), block.two.weight.detach().clone()

    def replay() -> None:
        for rows in SAMPLES:
            block(rows)

    with torch.inference_mode():
        modalities = TokenModalities(_modality_ids, WEIGHTS)
        loss = output_mse(TorchModel(block, {block: _specs()}), block, replay, replay, modalities)
        found = loss({"a.one": one.round(decimals=1), "a.two": two}, input_abs_max)

    error = total = 0.0
    for rows in SAMPLES:
        inner = torch.relu(_rounded(rows, input_abs_max.get("a.one")) @ one.round(decimals=1).T)
        inner = _rounded(inner, input_abs_max.get("a.two"))
        expected = rows + torch.relu(rows @ one.T) @ two.T
        weights = WEIGHTS[_modality_ids(len(rows)).long()][:, None]
        error += float((weights * (rows + inner @ two.T - expected).square()).sum())
        total += float((weights * expected.square()).sum())
    assert found == pytest.approx(error / total, rel=1e-4)
    assert all(parameter.detach().isnan().all() for parameter in block.parameters())  # unloaded


def _rounded(inputs: Tensor, abs_max: float | None) -> Tensor:
    return inputs if abs_max is None else (inputs / abs_max * 127).round().clamp(-127, 127) / 127 * abs_max


def test_held_out_samples_without_weight_are_an_error(block: _Two) -> None:
    """A loss over tokens of weight 0 is undefined."""
    modalities = TokenModalities(lambda count: torch.zeros(count, dtype=torch.uint8), WEIGHTS)

    def replay() -> None:
        for rows in SAMPLES:
            block(rows)

    with (
        torch.inference_mode(),
        pytest.raises(DatasetError, match="held-out calibration samples have zero total weight"),
    ):
        output_mse(TorchModel(block, {block: _specs()}), block, replay, replay, modalities)


def test_the_loss_of_a_head_equals_that_of_its_outputs(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hessian gives the relative error of all outputs, for chunks of any size."""
    monkeypatch.setattr(selection, "CHUNK_WEIGHTS", 256 * 100)
    monkeypatch.setattr(selection, "CHUNK_ROWS", 70)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    spec = next(one for one in checkpoint.specs if one.name == "head")
    weight = checkpoint.load(spec).float()
    inputs = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
    rounded = ROUNDING_FUNCTIONS["rtn"](weight, grid_scheme("int4-g32-asym"), None)

    found = hessian_mse(checkpoint, spec, input_stats(inputs), serial_map)({"head": rounded}, {})

    expected = inputs @ weight.T
    error = (inputs @ dequantize(rounded).T - expected).square().sum() / expected.square().sum()
    assert found == pytest.approx(float(error), rel=1e-4)
