"""What is told of a scheme's damage is what it does to outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate.forward import read_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.execution import torch_model
from mcpmq.execution.torch_model import NativeModel
from mcpmq.grids import dequantize
from mcpmq.mixed_precision.layer_error import TRIED, Damage, damages
from mcpmq.rounding import ROUNDERS
from mcpmq.scheme import IntegerScheme, parse_scheme
from mcpmq.system.progress import silent

KEY, DOWN, OUT = "language.layers.0.attention.k", "language.layers.0.mlp.down", "projector.out"
ASKED = {name: [parse_scheme(text) for text in ("int4-g32", "int8-g32", "f16", "keep")] for name in (KEY, DOWN, OUT)}


@pytest.fixture(scope="module")
def found(tiny_checkpoint: Path, tiny_set: Path) -> dict[str, Damage]:
    """Of three weights, rounded to nearest."""
    return damages(Checkpoint.open(tiny_checkpoint), ASKED, "rtn", CalibrationSet.open(tiny_set).samples, silent)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path) -> NativeModel:
    """The original, all blocks filled."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.fill(block, lambda spec: torch_model.floats_of(checkpoint.load(spec), spec))
    return model


def _run(checkpoint: Checkpoint, model: NativeModel, samples: Path) -> None:
    processor = checkpoint.family.processor(checkpoint.path)
    for one in read_samples(processor, CalibrationSet.open(samples).samples, silent):
        given = {name: torch.from_numpy(value) for name, value in processor.arguments(one).items()}
        model.module(**given, use_cache=False)


@contextmanager
def _seen(module: nn.Module, *, outputs: bool) -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        one = output if outputs else inputs[0]
        kept.append((one if isinstance(one, Tensor) else one[0]).flatten(0, -2))

    with module.register_forward_hook(see):
        yield kept


def test_errors_are_those_of_outputs(
    tiny_checkpoint: Path, tiny_set: Path, whole: NativeModel, found: dict[str, Damage]
) -> None:
    """Against the outputs themselves, of a matrix whose rows are all looked at."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    block = next(block for block, held in whole.blocks.items() if any(spec.name == KEY for spec in held.values()))
    name = next(name for name, spec in whole.blocks[block].items() if spec.name == KEY)
    with torch.no_grad(), _seen(block.get_submodule(name.rpartition(".")[0]), outputs=False) as inputs:
        _run(checkpoint, whole, tiny_set)
    rows, weight = torch.cat(inputs), block.get_parameter(name).detach()

    def error(scheme: IntegerScheme) -> float:
        change = dequantize(ROUNDERS["rtn"](weight, scheme, None)) - weight
        return float((rows @ change.T).double().square().sum())

    assert found[KEY].errors["int8-g32"] == pytest.approx(error(IntegerScheme(8, 32)) / error(TRIED), rel=1e-3)
    assert found[KEY].errors["int4-g32"] == pytest.approx(1)
    assert found[KEY].errors["keep"] == 0
    assert found[KEY].errors["f16"] < 1e-4


def test_shares_are_those_of_what_leaves_the_block(
    tiny_checkpoint: Path, tiny_set: Path, whole: NativeModel, found: dict[str, Damage]
) -> None:
    """One weight at a time on the tried scheme, in a model that runs as it always does."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    block = next(block for block, held in whole.blocks.items() if any(spec.name == KEY for spec in held.values()))
    changes = {}
    with torch.no_grad():
        with _seen(block, outputs=True) as before:
            _run(checkpoint, whole, tiny_set)
        for name, spec in whole.blocks[block].items():
            if spec.name in ASKED:
                parameter = block.get_parameter(name)
                kept = parameter.clone()
                parameter.copy_(dequantize(ROUNDERS["rtn"](kept, TRIED, None)))
                with _seen(block, outputs=True) as after:
                    _run(checkpoint, whole, tiny_set)
                parameter.copy_(kept)
                changes[spec.name] = float((torch.cat(after) - torch.cat(before)).square().sum())

    for name, change in changes.items():
        assert found[name].share == pytest.approx(change / sum(changes.values()), rel=1e-3)
    assert found[OUT].share == 1
    assert found[KEY].block == found[DOWN].block == "language.layers.0"


def test_what_sees_nothing_is_an_error(tiny_checkpoint: Path, tiny_set: Path) -> None:
    """A matrix of the vision tower, and no image; nobody guesses."""
    samples = [sample for sample in CalibrationSet.open(tiny_set) if sample.image is None]

    assert "projector.out" not in damages(Checkpoint.open(tiny_checkpoint), ASKED, "rtn", samples, silent)


def test_gptq_is_told_better_than_nearest(tiny_checkpoint: Path, tiny_set: Path, found: dict[str, Damage]) -> None:
    """The method that a recipe names is the one that is tried."""
    samples = CalibrationSet.open(tiny_set).samples

    by_gptq = damages(Checkpoint.open(tiny_checkpoint), {DOWN: ASKED[DOWN]}, "gptq", samples, silent)

    assert by_gptq[DOWN].errors["int4-g32"] < found[DOWN].errors["int4-g32"]
