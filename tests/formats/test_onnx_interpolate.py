"""The vision graph of MiniCPM-V 2.0, with its position table resized in the graph, compared with torch."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.export import export
from mcpmq.families.slicing import pack_patches
from mcpmq.formats.onnx import interpolate
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.formats.onnx.graph import Graph
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import open_runner
from tests.onnx_tools import write_onnx_artifact
from tests.reference_model import reference_model
from tests.tiny_families import TINY_FAMILIES

SIDE, WIDTH = 27, 8  # the side of the published model


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The tiny MiniCPM-V 2.0, unquantized."""
    [tiny] = [one for one in TINY_FAMILIES if one.name == "minicpm-v-2.0"]
    folder = tmp_path_factory.mktemp("full")
    return quantize(make_plan(Checkpoint.open(tiny.build(folder / "tiny")), Recipe.load("full")), folder / "codes")


@pytest.fixture(scope="module")
def native(full: QuantizedModel) -> nn.Module:
    """The same model in torch."""
    return reference_model(full)


def _pixels(height: int, width: int) -> Any:
    return np.random.default_rng(height).integers(0, 256, (14 * height, 14 * width, 3), np.uint8)


def _features(native: nn.Module, pixels: Any) -> Any:
    packed, size = torch.from_numpy(pack_patches(pixels, [0.5] * 3, [0.5] * 3, 14)), pixels.shape[:2]
    with torch.inference_mode():
        return native.get_image_features(packed[None], torch.tensor([size]) // 14)[0].numpy()  # type: ignore[operator]


KERNELS = {"bicubic": interpolate.cubic, "bilinear": interpolate.linear}


@pytest.mark.parametrize("mode", KERNELS)
@pytest.mark.parametrize("sizes", [[(32, 32)], [(22, 47), (47, 22)], [(27, 27)], [(16, 64)], [(1, 9), (3, 3)]])
def test_the_table_is_resized_like_in_torch(sizes: list[tuple[int, int]], mode: str, tmp_path: Path) -> None:
    """The graph resizes to more and to fewer patches, and slices of one call may have different shapes."""
    table = torch.randn(1, SIDE**2, WIDTH, generator=torch.Generator().manual_seed(3))
    square = table.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
    expected = [functional.interpolate(square, size, mode=mode, antialias=True)[0].flatten(1).T for size in sizes]

    with closing(ExternalData(tmp_path, "positions.onnx_data")) as data:
        graph = Graph("positions", data)
        given = [graph.input(name, ir.DataType.INT64, ["slices", "patches"]) for name in ("row", "column", "sizes")]
        weights: Any = SimpleNamespace(array=lambda _: graph.constant(table.numpy(), np.float32))
        shape: Any = SimpleNamespace(position_grid_size=SIDE, hidden_size=WIDTH)
        value = interpolate.position_embedding(graph, weights, shape, (given[0], given[1]), given[2], KERNELS[mode])
        graph.output(value, "positions", ir.DataType.FLOAT, ["slices", "patches", WIDTH])
    graph.save(tmp_path / "positions.onnx", "0", {})
    onnx.checker.check_model(str(tmp_path / "positions.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "positions.onnx"), providers=["CPUExecutionProvider"])
    rows, columns = zip(*(np.divmod(np.arange(height * width), width) for height, width in sizes), strict=True)
    [found] = session.run(None, {"row": np.stack(rows), "column": np.stack(columns), "sizes": np.array(sizes)})

    np.testing.assert_allclose(found, torch.stack(expected).numpy(), rtol=0, atol=1e-5)


def test_features_equal_those_of_torch(full: QuantizedModel, native: nn.Module, tmp_path: Path) -> None:
    """Features equal those of torch for slices with more, fewer and as many patches as the table has cells."""
    runner = open_runner(write_onnx_artifact(full, tmp_path / "onnx"), 1)

    for height, width in ((4, 4), (2, 9), (7, 3), (5, 5), (1, 1)):
        pixels = _pixels(height, width)
        np.testing.assert_allclose(runner.encode_slice(pixels), _features(native, pixels), rtol=0, atol=1e-5)


def test_the_npu_graph_is_close_to_torch(
    full: QuantizedModel, native: nn.Module, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """The NPU graph has only standard operators and exceeds 25 dB on an image outside of the calibration set."""
    written = export(full, "onnx", tmp_path / "onnx", npu=mixed_set)

    graph = onnx.load(written.path / "onnx" / "vision_encoder_quantized.onnx", load_external_data=False).graph
    assert {node.domain for node in graph.node} == {""}
    pixels = _pixels(4, 4)
    expected, found = _features(native, pixels), open_runner(written.path, 1).encode_slice(pixels)
    assert 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()) > 25
