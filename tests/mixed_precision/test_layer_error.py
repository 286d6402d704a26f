"""Layer errors equal the errors of outputs in plain forward passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate.forward import encode_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution import torch_model
from mcpmq.execution.torch_model import TorchModel
from mcpmq.grids import dequantize
from mcpmq.mixed_precision import layer_error
from mcpmq.mixed_precision.layer_error import PROBE_SCHEME, QuantError, quantization_errors
from mcpmq.rounding import ROUNDING_FUNCTIONS
from mcpmq.scheme import IntegerScheme, parse_scheme
from mcpmq.system.progress import silent
from tests.tiny import build_checkpoint, change_weights

KEY, DOWN, OUT = "language.layers.0.attention.k", "language.layers.0.mlp.down", "projector.out"
SCHEMES = {name: [parse_scheme(text) for text in ("int4-g32", "int8-g32", "f16", "keep")] for name in (KEY, DOWN, OUT)}


@pytest.fixture(scope="module")
def found(tiny_checkpoint: Path, tiny_set: Path) -> dict[str, QuantError]:
    """The errors of three weights with rtn."""
    return quantization_errors(
        Checkpoint.open(tiny_checkpoint), SCHEMES, "rtn", SampleSet.open(tiny_set).samples, silent
    )


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path) -> TorchModel:
    """The original model with all blocks loaded."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.load_block(block, lambda spec: torch_model.to_float(checkpoint.load(spec), spec))
    return model


def _run(checkpoint: Checkpoint, model: TorchModel, samples: Path) -> None:
    processor = checkpoint.family.open_processor(checkpoint.path)
    for one in encode_samples(processor, SampleSet.open(samples).samples, silent):
        arguments = {name: torch.from_numpy(value) for name, value in processor.model_inputs(one).items()}
        model.module(**arguments, use_cache=False)


@contextmanager
def _record(module: nn.Module, *, outputs: bool) -> Iterator[list[Tensor]]:
    recorded: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        one = output if outputs else inputs[0]
        recorded.append((one if isinstance(one, Tensor) else one[0]).flatten(0, -2))

    with module.register_forward_hook(record):
        yield recorded


def test_errors_are_those_of_the_outputs(
    tiny_checkpoint: Path, tiny_set: Path, whole: TorchModel, found: dict[str, QuantError]
) -> None:
    """Errors relative to the probe scheme equal those of the outputs, for a matrix whose rows are all sampled."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    block = next(block for block, specs in whole.blocks.items() if any(spec.name == KEY for spec in specs.values()))
    name = next(name for name, spec in whole.blocks[block].items() if spec.name == KEY)
    with torch.no_grad(), _record(block.get_submodule(name.rpartition(".")[0]), outputs=False) as inputs:
        _run(checkpoint, whole, tiny_set)
    rows, weight = torch.cat(inputs), block.get_parameter(name).detach()

    def error(scheme: IntegerScheme) -> float:
        change = dequantize(ROUNDING_FUNCTIONS["rtn"](weight, scheme, None)) - weight
        return float((rows @ change.T).double().square().sum())

    assert found[KEY].errors["int8-g32"] == pytest.approx(error(IntegerScheme(8, 32)) / error(PROBE_SCHEME), rel=1e-3)
    assert found[KEY].errors["int4-g32"] == pytest.approx(1)
    assert found[KEY].errors["keep"] == 0
    assert found[KEY].errors["f16"] < 1e-4


def test_shares_are_those_of_the_block_outputs(
    tiny_checkpoint: Path, tiny_set: Path, whole: TorchModel, found: dict[str, QuantError]
) -> None:
    """Shares equal the changes of the block's outputs with one weight at a time on the probe scheme."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    block = next(block for block, specs in whole.blocks.items() if any(spec.name == KEY for spec in specs.values()))
    changes = {}
    with torch.no_grad():
        with _record(block, outputs=True) as before:
            _run(checkpoint, whole, tiny_set)
        for name, spec in whole.blocks[block].items():
            if spec.name in SCHEMES:
                parameter = block.get_parameter(name)
                original = parameter.clone()
                parameter.copy_(dequantize(ROUNDING_FUNCTIONS["rtn"](original, PROBE_SCHEME, None)))
                with _record(block, outputs=True) as after:
                    _run(checkpoint, whole, tiny_set)
                parameter.copy_(original)
                changes[spec.name] = float((torch.cat(after) - torch.cat(before)).square().sum())

    for name, change in changes.items():
        assert found[name].share == pytest.approx(change / sum(changes.values()), rel=1e-3)
    assert found[OUT].share == 1
    assert found[KEY].block == found[DOWN].block == "language.layers.0"


def test_weights_of_unused_components_have_no_error(tiny_checkpoint: Path, tiny_set: Path) -> None:
    """Without an image in the samples, weights of the projector are missing from the result."""
    samples = [sample for sample in SampleSet.open(tiny_set) if sample.image is None]

    assert "projector.out" not in quantization_errors(Checkpoint.open(tiny_checkpoint), SCHEMES, "rtn", samples, silent)


def test_gptq_has_a_smaller_error_than_rtn(tiny_checkpoint: Path, tiny_set: Path, found: dict[str, QuantError]) -> None:
    """Errors are those of the given method."""
    samples = SampleSet.open(tiny_set).samples

    with_gptq = quantization_errors(Checkpoint.open(tiny_checkpoint), {DOWN: SCHEMES[DOWN]}, "gptq", samples, silent)

    assert with_gptq[DOWN].errors["int4-g32"] < found[DOWN].errors["int4-g32"]


def test_the_probe_scheme_is_plain_int4() -> None:
    """Relative errors and sensitivities refer to groups of 32 columns of 4 bits."""
    assert str(PROBE_SCHEME) == "int4-g32"


def test_errors_of_tall_matrices_are_sampled() -> None:
    """Every third of 300 rows is sampled, and the error of the sample is scaled to all rows."""
    weight = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    scheme = IntegerScheme(4, 32)

    error = layer_error._output_error(weight, scheme, "rtn", ())

    rounded = dequantize(ROUNDING_FUNCTIONS["rtn"](weight, scheme, None))
    assert error == pytest.approx(3 * float((rounded - weight)[::3].square().sum()), rel=1e-5)


def test_inputs_of_zero_give_no_error(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """GPTQ has no Hessian for matrices after a norm of zeros; any scheme gives the same outputs."""

    def change(name: str, value: Tensor) -> Tensor:
        return torch.zeros_like(value) if name == "language.layers.0.input_norm" else value

    checkpoint = Checkpoint.open(change_weights(build_checkpoint(tmp_path / "changed"), change))
    samples = SampleSet.open(tiny_set).samples

    errors = quantization_errors(checkpoint, {KEY: SCHEMES[KEY], DOWN: SCHEMES[DOWN]}, "gptq", samples, silent)

    assert set(errors[KEY].errors.values()) == {0.0}
    assert errors[DOWN].errors["int4-g32"] > 0


@pytest.mark.parametrize("text", ["int4-g32", "q4_k", "f16"])
def test_a_value_too_large_for_a_scheme_is_its_largest_error(text: str) -> None:
    """The error is that of a weight of zeros, so the search avoids the scheme."""
    weight = torch.ones(2, 256)
    weight[0, 0] = 1e9
    scheme = parse_scheme(text)
    assert scheme is not None

    assert layer_error._output_error(weight, scheme, "rtn", ()) == pytest.approx(1e18)
