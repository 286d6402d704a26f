"""Padding an intermediate size does not change the function of a model, with floats and with codes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcpmq.families.family import TensorSpec
from mcpmq.formats.onnx import layout
from mcpmq.formats.padding import pad_weight, padded_shapes, stored_shape
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners.onnx import OnnxRunner, open_runner
from mcpmq.scheme import GROUP_SIZES, IntegerScheme
from tests.onnx_tools import random_weight, write_onnx_artifact

SCHEMES = [
    IntegerScheme(bits, group, symmetric)
    for bits in (4, 8)
    for group in (*GROUP_SIZES, None)
    for symmetric in (True, False)
]


@given(st.sampled_from(SCHEMES), st.integers(1, 4), st.integers(1, 300), st.integers(0, 3), st.integers(0, 300))
def test_codes_are_padded_with_zeros(
    scheme: IntegerScheme, rows: int, columns: int, more_rows: int, more_columns: int
) -> None:
    """For every grid, the dequantized values are unchanged and followed by zeros."""
    weight = random_weight(scheme, rows, columns)
    padded = pad_weight(weight, (rows + more_rows, columns + more_columns))

    assert isinstance(padded, QTensor)
    assert padded.shape == (rows + more_rows, columns + more_columns)
    expected = torch.nn.functional.pad(dequantize(weight), (0, more_columns, 0, more_rows))
    assert torch.equal(dequantize(padded), expected)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=2), st.integers(0, 9))
def test_floats_are_padded_with_zeros(shape: list[int], more_rows: int) -> None:
    """Matrices and biases are padded in the same way."""
    weight = torch.randn(shape)
    padded = pad_weight(weight, (shape[0] + more_rows, *shape[1:]))

    assert isinstance(padded, torch.Tensor)
    assert torch.equal(padded[: shape[0]], weight)
    assert not padded[shape[0] :].any()


def test_only_intermediate_sizes_are_padded() -> None:
    """The up matrix gets rows and the down matrix columns; unchanged shapes are not listed."""
    specs = {
        "up": TensorSpec("up", "", (30, 8), "matrix", paddable_axis="rows"),
        "up.bias": TensorSpec("up.bias", "", (30,), paddable_axis="rows"),
        "down": TensorSpec("down", "", (8, 30), "matrix", paddable_axis="columns"),
        "out": TensorSpec("out", "", (8, 30), "matrix", transposed=True),
    }

    assert [stored_shape(spec, 32) for spec in specs.values()] == [(32, 8), (32,), (8, 32), (30, 8)]
    assert padded_shapes(specs, 32) == {"up": (32, 8), "up.bias": (32,), "down": (8, 32)}
    assert padded_shapes(specs, 30) == {}


def _features(runner: OnnxRunner) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (56, 70, 3), np.uint8)
    return runner.encode_slice(pixels)


@pytest.mark.parametrize("size", [160, 256])
def test_a_padded_float_graph_computes_the_same_features(
    size: int, tiny_full: QuantizedModel, tiny_full_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of the unquantized model do not change when 144 is padded to 160 or 256."""
    monkeypatch.setattr(layout, "padded_intermediate_size", lambda _: size)
    padded = open_runner(write_onnx_artifact(tiny_full, tmp_path / "padded"), 1)

    np.testing.assert_allclose(_features(padded), _features(open_runner(tiny_full_onnx, 1)), rtol=0, atol=2e-6)


def test_every_matmul_has_whole_blocks(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """The K of every MatMulNBits is a multiple of its block size; the vision FFN of 144 is padded to 160."""
    path = write_onnx_artifact(tiny_int4, tmp_path / "onnx")
    graphs = [onnx.load(file, load_external_data=False).graph for file in sorted(path.glob("onnx/*.onnx"))]
    attributes = [
        {attribute.name: attribute.i for attribute in node.attribute}
        for graph in graphs
        for node in graph.node
        if node.op_type == "MatMulNBits"
    ]

    assert all(node["K"] % node["block_size"] == 0 for node in attributes)
    assert 160 in {node["K"] for node in attributes}
