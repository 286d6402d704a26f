"""A family's module has weights in loaded blocks only."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.execution import torch_model
from mcpmq.execution.torch_model import TorchModel
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.scheme import GgmlScheme, IntegerScheme, parse_scheme


def test_every_weight_of_the_checkpoint_is_in_one_block(tiny_checkpoint: Path) -> None:
    """Blocks map the name of every parameter to its spec, with the shape of the parameter."""
    checkpoint = Checkpoint.open(tiny_checkpoint)

    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)

    found = [spec for specs in model.blocks.values() for spec in specs.values()]
    assert sorted(spec.name for spec in found) == sorted(spec.name for spec in checkpoint.specs)
    for block, specs in model.blocks.items():
        shapes = {name: tuple(value.shape) for name, value in block.named_parameters()}
        assert shapes == {name: spec.shape for name, spec in specs.items()}


def test_a_loaded_block_has_the_weights_of_the_checkpoint(tiny_checkpoint: Path) -> None:
    """Weights are float32 in the orientation of the module; every other block stays empty."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)
    loaded = next(block for block, specs in model.blocks.items() if "proj" in specs)

    def read(spec: TensorSpec) -> Tensor:
        return torch_model.to_float(checkpoint.load(spec), spec)

    model.load_block(loaded, read)

    for block, specs in model.blocks.items():
        for name, value in block.named_parameters():
            if block is loaded:
                assert torch.equal(value, checkpoint.load_stored(specs[name]).float())
            else:
                assert value.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("text", ["int4-g32", "int8-g64-asym", "q4_k"])
def test_dequantization_is_equal_for_any_chunk_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks do not change values, and a transposed matrix is transposed."""
    scheme, spec = parse_scheme(text), TensorSpec("name", "hub", (256, 7), "matrix", transposed=True)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    weight = ROUNDING_FUNCTIONS["rtn"](torch.randn(7, 256, generator=torch.Generator().manual_seed(0)), scheme, None)
    monkeypatch.setattr(torch_model, "CHUNK_WEIGHTS", 600)

    assert torch.equal(torch_model.to_float(weight, spec), dequantize(weight).T)


def test_an_unloaded_weight_gives_nan() -> None:
    """An unloaded weight has its shape and a real device, and outputs computed from it are NaN."""
    layer = nn.Linear(3, 2)
    TorchModel(layer, {}).unload_block(layer)
    assert layer.weight.shape == (2, 3)
    assert layer(torch.ones(3)).isnan().all()
