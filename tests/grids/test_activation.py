"""Activation grids: they cover a range, represent zero exactly, and equal ONNX Runtime bit for bit."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.grids.activation import ActivationGrid

# Ranges with subnormal scales are rejected by `check_range`.
NUMBERS = st.floats(-1e4, 1e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-35)


@given(NUMBERS, NUMBERS)
def test_a_grid_covers_its_range_and_zero(one: float, other: float) -> None:
    """Values inside err by about half a step at most, zero by nothing; values outside are clamped."""
    low, high = min(one, other), max(one, other)
    grid = ActivationGrid.from_range((low, high), "u8")
    inside = torch.linspace(min(low, 0), max(high, 0), 1001)

    assert 0 <= grid.zero_point <= 255
    # Zero gets an exact code, which shifts both ends by up to half a step.
    assert float((grid.fake_quantize(inside) - inside).abs().max()) <= grid.scale * 1.001
    assert float(grid.fake_quantize(torch.zeros(1))) == 0
    ends = grid.fake_quantize(torch.tensor([-1e6, 1e6]))
    assert torch.equal(ends, torch.tensor([-grid.zero_point, 255 - grid.zero_point]) * grid.scale)


def test_fake_quantization_equals_onnx_runtime(tmp_path: Path) -> None:
    """On values within, outside and halfway between codes, as QuantizeLinear and DequantizeLinear compute them."""
    grid = ActivationGrid.from_range((-1.3, 4.1), "u8")
    given = torch.cat([torch.linspace(-3, 6, 4001), (torch.arange(-50, 300) - grid.zero_point + 0.5) * grid.scale])

    assert np.array_equal(_onnx_runtime_fake_quantize(grid, given.numpy()), grid.fake_quantize(given).numpy())


def _onnx_runtime_fake_quantize(grid: ActivationGrid, values: np.ndarray) -> np.ndarray:
    constants = [
        onnx.numpy_helper.from_array(np.array(grid.scale, np.float32), "scale"),
        onnx.numpy_helper.from_array(np.array(grid.zero_point, np.uint8), "zero"),
    ]
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "round", ends[:1], ends[1:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": values})[0]
    return found


def test_the_grid_of_zeros_has_a_scale_of_one() -> None:
    """A matrix whose inputs were all zero divides by 1."""
    assert ActivationGrid.from_range((0.0, 0.0), "u8") == ActivationGrid(1.0, 0, 255)
