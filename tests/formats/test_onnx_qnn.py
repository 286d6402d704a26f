"""The vision graph for NPUs: static, standard operators only, and still close to the model."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mcpmq.artifact import Artifact
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import CalibrationError, FormatError
from mcpmq.export import export
from mcpmq.formats.onnx.qnn import static_size
from mcpmq.quantized_model import Quantized
from mcpmq.runners.onnx import ROUNDED, STRETCHED, OnnxRunner, open_runner
from tests.reference_model import native_model


@pytest.fixture(scope="module")
def artifact(tiny_int4: Quantized, mixed_set: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """phone-int4 of the tiny model, its vision for NPUs."""
    return export(tiny_int4, "onnx", tmp_path_factory.mktemp("npu") / "onnx", npu=mixed_set)


@pytest.fixture(scope="module")
def graph(artifact: Artifact) -> onnx.GraphProto:
    """Its vision graph."""
    return onnx.load(_vision(artifact), load_external_data=False).graph


def _vision(artifact: Artifact) -> Path:
    return artifact.path / "onnx" / "vision_encoder_quantized.onnx"


def test_everything_is_static_and_standard(artifact: Artifact, graph: onnx.GraphProto) -> None:
    """One input, of pixels, and one output, whose shapes are numbers; no operator of ONNX Runtime's own."""
    onnx.checker.check_model(str(_vision(artifact)))
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"pixel_values": [1, 3, 14, 14 * 16], "image_features": [4, 256]}
    assert {node.domain for node in graph.node} == {""}


def test_products_multiply_integers(graph: onnx.GraphProto) -> None:
    """Both inputs of every product come out of integers: 16 bits of activations, 8 of weights."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    kinds = set()
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            sources = [maker[name] for name in node.input[:2]]
            assert {source.op_type for source in sources} == {"DequantizeLinear"}
            kinds |= {types[source.input[2]] for source in sources}
    assert kinds == {onnx.TensorProto.UINT16, onnx.TensorProto.INT8}


def test_what_it_sees_is_what_the_model_sees(artifact: Artifact, tiny_int4: Quantized) -> None:
    """Better than 25 dB on an image that it was not calibrated on."""
    pixels = np.random.default_rng(7).integers(0, 256, (56, 56, 3), np.uint8)
    found = open_runner(artifact.path, 1).see(pixels)

    channels = torch.from_numpy(np.float32(pixels) / 127.5 - 1).permute(2, 0, 1)
    packed = channels.unflatten(2, (4, 14)).unflatten(1, (4, 14)).permute(0, 2, 1, 3, 4).reshape(1, 3, 14, -1)
    with torch.inference_mode():
        model = native_model(tiny_int4)
        expected = model.get_image_features(packed, torch.tensor([[4, 4]]))[0].numpy()  # type: ignore[operator]
    assert 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()) > 25


def test_other_slices_are_stretched_and_said(artifact: Artifact) -> None:
    """A wide slice fits, and the figures bear a note."""
    runner: OnnxRunner = open_runner(artifact.path, 1)

    assert runner.see(np.zeros((28, 84, 3), np.uint8)).shape == (4, 256)
    assert runner.notes == (ROUNDED, STRETCHED)


def test_the_manifest_says_so_and_the_same_is_not_made_twice(
    artifact: Artifact, tiny_int4: Quantized, mixed_set: CalibrationSet
) -> None:
    """The set is named with its hash; asked again, what is there is returned."""
    assert mixed_set.sha256 in artifact.manifest.notes[-1]
    before = _vision(artifact).stat().st_mtime_ns
    assert export(tiny_int4, "onnx", artifact.path, npu=mixed_set).manifest == artifact.manifest
    assert _vision(artifact).stat().st_mtime_ns == before


def test_the_same_images_give_the_same_bytes(
    artifact: Artifact, tiny_int4: Quantized, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """Names, order and weights."""
    again = export(tiny_int4, "onnx", tmp_path / "again", npu=mixed_set)

    assert again.manifest == artifact.manifest


def test_what_cannot_be_done_is_refused(tiny_int4: Quantized, mixed_set: CalibrationSet, tmp_path: Path) -> None:
    """GGUF has nothing for NPUs, and text has no ranges of what is seen."""
    with pytest.raises(FormatError, match="nothing for NPUs"):
        export(tiny_int4, "gguf", tmp_path / "gguf", npu=mixed_set)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "manifest.jsonl").write_text('{"id": "t", "prompt": "How many?", "answer": "Two."}\n')
    with pytest.raises(CalibrationError, match="has an image"):
        export(tiny_int4, "onnx", tmp_path / "onnx", npu=CalibrationSet.open(tmp_path / "text"))

    assert static_size(tiny_int4) == (4, 4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]
