"""Grids of inputs: they cover what was seen, hold zero exactly, and are ONNX Runtime's to the bit."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.grids.activation import InputGrid

NUMBERS = st.floats(-1e4, 1e4, width=32)


@given(NUMBERS, NUMBERS)
def test_a_grid_covers_its_range_and_zero(one: float, other: float) -> None:
    """Nothing inside is off by more than half a step, zero by nothing; what is outside goes to the ends."""
    low, high = min(one, other), max(one, other)
    grid = InputGrid.over((low, high), "u8")
    inside = torch.linspace(min(low, 0), max(high, 0), 1001)

    assert 0 <= grid.zero <= 255
    # Zero has a code of its own, which moves both ends by up to half a step.
    assert float((grid.rounded(inside) - inside).abs().max()) <= grid.scale * 1.001
    assert float(grid.rounded(torch.zeros(1))) == 0
    ends = grid.rounded(torch.tensor([-1e6, 1e6]))
    assert torch.equal(ends, torch.tensor([-grid.zero, 255 - grid.zero]) * grid.scale)


def test_rounding_is_that_of_onnx_runtime(tmp_path: Path) -> None:
    """QuantizeLinear and DequantizeLinear in the runtime, on values within, outside and halfway between codes."""
    grid = InputGrid.over((-1.3, 4.1), "u8")
    given = torch.cat([torch.linspace(-3, 6, 4001), (torch.arange(-50, 300) - grid.zero + 0.5) * grid.scale])

    assert np.array_equal(_in_onnx_runtime(grid, given.numpy()), grid.rounded(given).numpy())


def _in_onnx_runtime(grid: InputGrid, values: np.ndarray) -> np.ndarray:
    constants = [
        onnx.numpy_helper.from_array(np.array(grid.scale, np.float32), "scale"),
        onnx.numpy_helper.from_array(np.array(grid.zero, np.uint8), "zero"),
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
