"""A family's module holds real weights only where and while a block is filled."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.execution import torch_model
from mcpmq.execution.torch_model import NativeModel
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.rounding import ROUNDERS
from mcpmq.scheme import GgmlScheme, IntegerScheme, parse_scheme


def test_every_weight_of_the_checkpoint_lies_in_one_block(tiny_checkpoint: Path) -> None:
    """By its own spec, under the name that it has inside of the block."""
    checkpoint = Checkpoint.open(tiny_checkpoint)

    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)

    held = [spec for specs in model.blocks.values() for spec in specs.values()]
    assert sorted(spec.name for spec in held) == sorted(spec.name for spec in checkpoint.specs)
    for block, specs in model.blocks.items():
        shapes = {name: tuple(value.shape) for name, value in block.named_parameters()}
        assert shapes == {name: spec.shape for name, spec in specs.items()}


def test_a_filled_block_holds_the_weights_of_the_checkpoint(tiny_checkpoint: Path) -> None:
    """In float32, turned as the module has them; every other block stays empty."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)
    filled = next(block for block, specs in model.blocks.items() if "proj" in specs)

    def floats(spec: TensorSpec) -> Tensor:
        return torch_model.floats_of(checkpoint.load(spec), spec)

    model.fill(filled, floats)

    for block, specs in model.blocks.items():
        for name, value in block.named_parameters():
            if block is filled:
                assert torch.equal(value, checkpoint.load_stored(specs[name]).float())
            else:
                assert value.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("text", ["int4-g32", "int8-g64-asym", "q4_k"])
def test_rows_are_dequantized_alike_in_any_piece(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding the memory changes no value; a turned matrix is turned back."""
    scheme, spec = parse_scheme(text), TensorSpec("name", "hub", (256, 7), "matrix", transposed=True)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    weight = ROUNDERS["rtn"](torch.randn(7, 256, generator=torch.Generator().manual_seed(0)), scheme, None)
    monkeypatch.setattr(torch_model, "PIECE_WEIGHTS", 600)

    assert torch.equal(torch_model.floats_of(weight, spec), dequantize(weight).T)


def test_an_emptied_weight_that_is_used_shows() -> None:
    """What stands in for an absent weight is not a number, of the same shape, on a real device."""
    layer = nn.Linear(3, 2)
    NativeModel(layer, {}).empty(layer)
    assert layer.weight.shape == (2, 3)
    assert layer(torch.ones(3)).isnan().all()
