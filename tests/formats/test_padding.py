"""A wider hidden width in the file is the same model: before quantization, and with the codes it has."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.families.family import TensorSpec
from mcpmq.formats.onnx import layout
from mcpmq.formats.padding import widened
from mcpmq.formats.shapes import changed_shapes, stored_shape
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Quantized
from mcpmq.runners.onnx import OnnxRunner, open_runner
from mcpmq.scheme import GROUP_SIZES, IntegerScheme
from tests.onnx_tools import artifact_of, random_weight

SCHEMES = [
    IntegerScheme(bits, group, symmetric)
    for bits in (4, 8)
    for group in (*GROUP_SIZES, None)
    for symmetric in (True, False)
]


@given(st.sampled_from(SCHEMES), st.integers(1, 4), st.integers(1, 300), st.integers(0, 3), st.integers(0, 300))
def test_codes_are_widened_by_zeros(scheme: IntegerScheme, rows: int, columns: int, more: int, wider: int) -> None:
    """Whatever the grid, the values are those of before, and zeros beside them."""
    weight = random_weight(scheme, rows, columns)
    wide = widened(weight, (rows + more, columns + wider))

    assert isinstance(wide, QTensor)
    assert wide.shape == (rows + more, columns + wider)
    expected = torch.nn.functional.pad(dequantize(weight), (0, wider, 0, more))
    assert torch.equal(dequantize(wide), expected)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=2), st.integers(0, 9))
def test_floats_are_widened_by_zeros(shape: list[int], wider: int) -> None:
    """Matrices and biases alike."""
    weight = torch.randn(shape)
    wide = widened(weight, (shape[0] + wider, *shape[1:]))

    assert isinstance(wide, torch.Tensor)
    assert torch.equal(wide[: shape[0]], weight)
    assert not wide[shape[0] :].any()


def test_only_hidden_widths_grow() -> None:
    """Rows of the one matrix, columns of the other; a shape that stays is not told."""
    specs = {
        "up": TensorSpec("up", "", (30, 8), "matrix", may_grow="rows"),
        "up.bias": TensorSpec("up.bias", "", (30,), may_grow="rows"),
        "down": TensorSpec("down", "", (8, 30), "matrix", may_grow="columns"),
        "out": TensorSpec("out", "", (8, 30), "matrix", transposed=True),
    }

    assert [stored_shape(spec, 32) for spec in specs.values()] == [(32, 8), (32,), (8, 32), (30, 8)]
    assert changed_shapes(specs, 32) == {"up": (32, 8), "up.bias": (32,), "down": (8, 32)}
    assert changed_shapes(specs, 30) == {}


def _features(runner: OnnxRunner) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (56, 70, 3), np.uint8)
    return runner.see(pixels)


@pytest.mark.parametrize("width", [160, 256])
def test_the_wider_float_graph_is_the_same_function(
    width: int, tiny_full: Quantized, tiny_full_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing quantized, 160 or 256 where the model has 144: the same embeddings to the last bits of float32."""
    monkeypatch.setattr(layout, "widened_ffn", lambda _: width)
    wide = open_runner(artifact_of(tiny_full, tmp_path / "wide"), 1)

    np.testing.assert_allclose(_features(wide), _features(open_runner(tiny_full_onnx, 1)), rtol=0, atol=2e-6)


def test_no_block_of_a_product_is_ragged(tiny_int4: Quantized, tmp_path: Path) -> None:
    """Every MatMulNBits multiplies whole blocks, the vision FFN of 144 as 160."""
    path = artifact_of(tiny_int4, tmp_path / "onnx")
    graphs = [onnx.load(file, load_external_data=False).graph for file in sorted(path.glob("onnx/*.onnx"))]
    settings = [
        {attribute.name: attribute.i for attribute in node.attribute}
        for graph in graphs
        for node in graph.node
        if node.op_type == "MatMulNBits"
    ]

    assert all(one["K"] % one["block_size"] == 0 for one in settings)
    assert {160} <= {one["K"] for one in settings}
