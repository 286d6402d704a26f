"""A bit width that is added to the table of integer schemes works in every step, or is refused early by a format."""

from pathlib import Path

import pytest
import torch

from mcpmq.artifact import FormatName
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.execution.chunked_matmul import serial_map
from mcpmq.families.family import SmoothingMapping, TensorSpec
from mcpmq.formats import FORMATS, check_plan, declared_format
from mcpmq.grids import dequantize
from mcpmq.plan import Plan, make_plan
from mcpmq.qtensor import IntegerTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel, read_weight, write_block
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDING_FUNCTIONS, RoundingMethod
from mcpmq.rounding.smoothing import BalanceLayer, Channels, search_scales
from mcpmq.scheme import SYMMETRIC_RANGES, IntegerScheme, SymmetricRange, parse_scheme
from mcpmq.system.safetensors_file import read_header
from tests.rounding.oracle import grid_scheme, input_stats, random_layer, same_bytes
from tests.tiny_families import QWEN2_VL

SCHEMES = ["int3-g32", "int3-row", "int3-g32-asym"]


@pytest.fixture
def int3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integer schemes of 3 bits: codes 0..7 around 4, with a signed scale."""
    monkeypatch.setitem(SYMMETRIC_RANGES, 3, SymmetricRange(qmin=0, scale_divisor=-4))


def _plan(checkpoint: Path) -> Plan:
    recipe = {"name": "int3", "weights": {"language.*": "int3-g32"}}
    return make_plan(Checkpoint.open(checkpoint), Recipe.model_validate(recipe))


def test_a_bit_width_outside_the_table_is_an_error() -> None:
    """Neither a recipe nor a program can make such a scheme."""
    with pytest.raises(RecipeError, match="`int3-g32` is not a scheme"):
        parse_scheme("int3-g32")
    with pytest.raises(RecipeError, match="integers of 3 bits are not supported"):
        IntegerScheme(3, 32)


@pytest.mark.usefixtures("int3")
@pytest.mark.parametrize("text", SCHEMES)
def test_a_new_bit_width_is_parsed_and_sized(text: str) -> None:
    """The text is read back, and a row of 64 columns has 24 bytes of codes."""
    scheme = grid_scheme(text)

    assert str(scheme) == text
    groups, zero_point_bytes = (1 if text == "int3-row" else 2), (1 if text.endswith("asym") else 0)
    assert scheme.row_nbytes(64) == 24 + 2 * groups + zero_point_bytes


@pytest.mark.usefixtures("int3")
@pytest.mark.parametrize("method", ROUNDING_FUNCTIONS)
@pytest.mark.parametrize("text", SCHEMES)
def test_every_method_rounds_to_the_new_grid(text: str, method: RoundingMethod) -> None:
    """All eight codes are used, and the error on normal weights is between those of 4 and of 2 bits."""
    weight, inputs = random_layer(64, 256)[0].sign() * torch.rand(64, 256), random_layer(1, 256)[1]

    quantized = ROUNDING_FUNCTIONS[method](weight, grid_scheme(text), input_stats(inputs))

    assert isinstance(quantized, IntegerTensor)
    assert quantized.codes.unique().tolist() == list(range(8))
    error = (inputs @ (dequantize(quantized) - weight).T).norm() / (inputs @ weight.T).norm()
    assert 0.01 < error < 0.35


@pytest.mark.usefixtures("int3")
def test_the_value_of_largest_magnitude_gets_the_lowest_code() -> None:
    """The scale is that value over -4, rounded to fp16, for both signs."""
    weight = torch.tensor([[0.5, -1.0, 2.0, 0.1], [0.5, -3.0, 2.0, 0.1]])

    quantized = ROUNDING_FUNCTIONS["rtn"](weight, IntegerScheme(3, None), None)

    assert isinstance(quantized, IntegerTensor)
    assert quantized.scale.tolist() == [[-0.5], [0.75]]
    assert quantized.codes.tolist() == [[3, 6, 0, 4], [5, 0, 7, 4]]
    assert torch.equal(dequantize(quantized), torch.tensor([[0.5, -1.0, 2.0, 0.0], [0.75, -3.0, 2.25, 0.0]]))


@pytest.mark.usefixtures("int3")
def test_smoothing_searches_scales_for_the_new_grid() -> None:
    """An exponent above zero has the least error on inputs of very different magnitudes."""
    weight, inputs = random_layer(24, 256)
    layer = BalanceLayer(weight, grid_scheme("int3-g32"), input_stats(inputs))

    scales = search_scales(SmoothingMapping("", "", ()), "awq", [layer], Channels(256, 32), True, serial_map)

    assert scales is not None
    assert scales.exponent > 0


@pytest.mark.usefixtures("int3")
@pytest.mark.parametrize("text", SCHEMES)
def test_block_files_store_the_new_codes(text: str, tmp_path: Path) -> None:
    """A weight is read back bit for bit."""
    scheme, spec = grid_scheme(text), TensorSpec("a", "a", (6, 70), "matrix")
    weight = ROUNDING_FUNCTIONS["rtn"](random_layer(6, 70)[0], scheme, None)

    write_block(tmp_path / "block.safetensors", {"a": weight})

    loaded = read_weight(read_header(tmp_path / "block.safetensors"), spec, scheme)
    assert not isinstance(loaded, torch.Tensor)
    assert same_bytes(loaded, weight)


@pytest.mark.usefixtures("int3")
def test_a_checkpoint_is_quantized_to_the_new_scheme(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Plan, quantization and the quantized model agree about the scheme."""
    quantize(_plan(tiny_checkpoint), tmp_path / "out")

    weight = QuantizedModel.open(tmp_path / "out").load("language.layers.0.mlp.up")
    assert isinstance(weight, IntegerTensor)
    assert str(weight.scheme) == "int3-g32"


@pytest.mark.usefixtures("int3")
@pytest.mark.parametrize("name", FORMATS)
def test_the_new_scheme_is_an_error_of_every_format(name: FormatName, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """No format declares 3 bits, so checking and forecasting a plan are errors that name the scheme."""
    plan = _plan(QWEN2_VL.build(tmp_path / "qwen") if declared_format(name).families else tiny_checkpoint)

    with pytest.raises(FormatError, match="`int3-g32`"):
        check_plan(plan, name)
    with pytest.raises(FormatError, match="`int3-g32`"):
        forecast(plan, [name], 1024)
