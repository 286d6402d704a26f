"""The vision graph for NPUs: static shapes, standard operators, and close to the unquantized model."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, FormatError
from mcpmq.export import export
from mcpmq.formats.onnx.qnn import static_patch_grid
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners.onnx import INT8_ACTIVATIONS_NOTE, RESIZED_SLICES_NOTE, OnnxRunner, open_runner
from tests.reference_model import reference_model


@pytest.fixture(scope="module")
def artifact(tiny_int4: QuantizedModel, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model as phone-int4, with the vision graph for NPUs."""
    return export(tiny_int4, "onnx", tmp_path_factory.mktemp("npu") / "onnx", npu=mixed_set)


@pytest.fixture(scope="module")
def graph(artifact: Artifact) -> onnx.GraphProto:
    """The vision graph of the artifact."""
    return onnx.load(_vision(artifact), load_external_data=False).graph


def _vision(artifact: Artifact) -> Path:
    return artifact.path / "onnx" / "vision_encoder_quantized.onnx"


def test_shapes_are_static_and_operators_standard(artifact: Artifact, graph: onnx.GraphProto) -> None:
    """The graph has one input and one output of static shape, and no contrib operator."""
    onnx.checker.check_model(str(_vision(artifact)))
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"pixel_values": [1, 3, 14, 14 * 16], "image_features": [4, 256]}
    assert {node.domain for node in graph.node} == {""}


def test_products_have_quantized_inputs(graph: onnx.GraphProto) -> None:
    """Both inputs of every product are dequantized integers: 16-bit activations and 8-bit weights."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    input_types = set()
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            sources = [maker[name] for name in node.input[:2]]
            assert {source.op_type for source in sources} == {"DequantizeLinear"}
            input_types |= {types[source.input[2]] for source in sources}
    assert input_types == {onnx.TensorProto.UINT16, onnx.TensorProto.INT8}


def test_features_are_close_to_the_unquantized_model(artifact: Artifact, tiny_int4: QuantizedModel) -> None:
    """The signal-to-noise ratio exceeds 25 dB on an image outside of the calibration set."""
    pixels = np.random.default_rng(7).integers(0, 256, (56, 56, 3), np.uint8)
    found = open_runner(artifact.path, 1).encode_slice(pixels)

    channels = torch.from_numpy(np.float32(pixels) / 127.5 - 1).permute(2, 0, 1)
    packed = channels.unflatten(2, (4, 14)).unflatten(1, (4, 14)).permute(0, 2, 1, 3, 4).reshape(1, 3, 14, -1)
    with torch.inference_mode():
        model = reference_model(tiny_int4)
        expected = model.get_image_features(packed, torch.tensor([[4, 4]]))[0].numpy()  # type: ignore[operator]
    assert 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()) > 25


def test_slices_of_another_shape_are_resized_with_a_note(artifact: Artifact) -> None:
    """The runner resizes a wide slice to the static shape and notes it."""
    runner: OnnxRunner = open_runner(artifact.path, 1)

    assert runner.encode_slice(np.zeros((28, 84, 3), np.uint8)).shape == (4, 256)
    assert runner.notes == (INT8_ACTIVATIONS_NOTE, RESIZED_SLICES_NOTE)


def test_the_manifest_records_the_calibration_set(
    artifact: Artifact, tiny_int4: QuantizedModel, mixed_set: SampleSet
) -> None:
    """The manifest has the hash of the calibration set, and a second export returns the existing artifact."""
    assert mixed_set.sha256 in artifact.manifest.notes[-1]
    before = _vision(artifact).stat().st_mtime_ns
    assert export(tiny_int4, "onnx", artifact.path, npu=mixed_set).manifest == artifact.manifest
    assert _vision(artifact).stat().st_mtime_ns == before


def test_export_is_reproducible(
    artifact: Artifact, tiny_int4: QuantizedModel, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Two exports with one calibration set have equal manifests."""
    again = export(tiny_int4, "onnx", tmp_path / "again", npu=mixed_set)

    assert again.manifest == artifact.manifest


def test_unsupported_npu_exports_are_errors(tiny_int4: QuantizedModel, mixed_set: SampleSet, tmp_path: Path) -> None:
    """GGUF has no NPU graph, and a calibration set without images is an error; neither leaves files."""
    with pytest.raises(FormatError, match="no vision graph for NPUs"):
        export(tiny_int4, "gguf", tmp_path / "gguf", npu=mixed_set)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "manifest.jsonl").write_text('{"id": "t", "prompt": "How many?", "answer": "Two."}\n')
    with pytest.raises(DatasetError, match="has an image"):
        export(tiny_int4, "onnx", tmp_path / "onnx", npu=SampleSet.open(tmp_path / "text"))
    long = {"id": "t", "prompt": "word " * 3000, "answer": "Two."}
    Image.new("RGB", (60, 60)).save(tmp_path / "text" / "a.png")
    lines = [{"id": "i", "image": "a.png", "prompt": "Where?", "answer": "Here."}, long]
    (tmp_path / "text" / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DatasetError, match="`t` has .* tokens"):
        export(tiny_int4, "onnx", tmp_path / "onnx", npu=SampleSet.open(tmp_path / "text"))

    assert static_patch_grid(tiny_int4) == (4, 4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]
