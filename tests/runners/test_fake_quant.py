"""Activation fake quantization in torch, and the equal integer computation in ONNX Runtime."""

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution import torch_model
from mcpmq.families import family_named
from mcpmq.grids.activation import ActivationGrid
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners import onnx as onnx_runner
from mcpmq.runners.fake_quant import fake_quantize_activations
from mcpmq.runners.torch import open_runner
from tests.onnx_tools import write_onnx_artifact
from tests.reference_model import reference_model

RECIPE = {
    "name": "integers",
    "weights": {"vision.layers.*": "int8-row", "projector.*": "int8-row"},
    "activations": {"vision.*": "u8", "projector.*": "u8"},
}


@pytest.fixture(scope="module")
def int8_vision(
    tiny_checkpoint: Path, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedModel:
    """The tiny checkpoint with integer weights and activations in the vision tower and the projector."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(RECIPE))
    return quantize(plan, tmp_path_factory.mktemp("int8_vision") / "quantized", mixed_set)


def _image_features(model: nn.Module, side: int = 4) -> Tensor:
    pixels = torch.rand((1, 3, 14, 14 * side * side), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        features: Tensor = model.get_image_features(pixels, torch.tensor([[side, side]]))[0]  # type: ignore[operator]
    return features


def _fake_quantized_model(quantized: QuantizedModel) -> nn.Module:
    runner = open_runner(quantized.path, 1)
    for block in runner.model.blocks:
        runner.model.load_block(block, runner.weights.load_float32)
    return runner.model.module


def test_the_manifest_has_the_range_of_every_quantized_input(int8_vision: QuantizedModel) -> None:
    """A matrix has one range, the packed projection three; a range includes zero; other weights have none."""
    records = int8_vision.records.values()
    ranges = {record.name: record.input_ranges for record in records if record.input_ranges}

    assert set(ranges) == {record.name for record in records if record.activation}
    assert set(ranges) == {step.name for step in int8_vision.tensors if str(step.scheme) == "int8-row"}
    assert {len(found) for name, found in ranges.items() if name != "projector.attention.qkv"} == {1}
    assert len(ranges["projector.attention.qkv"]) == 3
    assert all(low <= 0 <= high and low < high for found in ranges.values() for low, high in found)
    assert int8_vision.artifact.manifest.calibration_set


def test_ranges_equal_the_extremes_of_the_calibration_inputs(
    int8_vision: QuantizedModel, tiny_checkpoint: Path, mixed_set: SampleSet
) -> None:
    """The range of the first query projection equals the extremes of its input in plain forward passes."""
    checkpoint, captured = Checkpoint.open(tiny_checkpoint), []
    processor = checkpoint.family.open_processor(tiny_checkpoint)
    model = torch_model.build_model(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.load_block(block, lambda spec: torch_model.to_float(checkpoint.load(spec), spec))
    query = model.module.vpm.encoder.layers[0].self_attn.q_proj  # type: ignore[union-attr, index]
    query.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    for sample in mixed_set:
        inputs = processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
        tensors = {name: torch.from_numpy(value) for name, value in processor.model_inputs(inputs).items()}
        with torch.inference_mode():
            model.module(**tensors, use_cache=False)

    [(low, high)] = int8_vision.records["vision.layers.0.attention.q"].input_ranges or ()
    values = torch.cat([one.flatten() for one in captured])
    np.testing.assert_allclose([low, high], [float(values.min()), float(values.max())], rtol=1e-5)


def test_every_kind_of_matrix_is_fake_quantized(int8_vision: QuantizedModel) -> None:
    """A coarse grid on one matrix at a time changes the image features."""
    family, quantized = family_named(int8_vision.artifact.manifest.family), int8_vision
    plain = _image_features(reference_model(quantized))
    for name in ("vision.layers.0.mlp.down", "projector.attention.qkv", "projector.attention.o", "projector.out"):
        model = torch_model.build_model(family, quantized.config, tuple(quantized.specs.values()))
        for block in model.blocks:
            model.load_block(block, lambda spec: torch_model.to_float(quantized.load(spec.name), spec))
        fake_quantize_activations(family, model, {name: (ActivationGrid(0.5, 8, 15),)})
        assert float((_image_features(model.module) - plain).abs().max()) > 1e-3


@pytest.mark.skipif(
    platform.machine() == "x86_64" and "vnni" not in Path("/proc/cpuinfo").read_text(),
    reason="without VNNI, ONNX Runtime adds pairs of products in 16 bits",
)
def test_onnx_runtime_matches_the_fake_quantization(int8_vision: QuantizedModel, tmp_path: Path) -> None:
    """The integer graph is much closer to the fake-quantized model than that is to the model with float inputs."""
    simulated, plain = (
        _image_features(_fake_quantized_model(int8_vision)),
        _image_features(reference_model(int8_vision)),
    )
    vision = onnx_runner.open_runner(write_onnx_artifact(int8_vision, tmp_path / "onnx"), 1).vision
    pixels = torch.rand((1, 3, 14, 14 * 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    feeds = {"pixel_values": pixels.numpy(), "tgt_sizes": np.array([[4, 4]])}
    found = torch.from_numpy(vision.run(None, feeds)[0])

    quantization_error = float((simulated - plain).abs().mean())
    assert quantization_error > 1e-3
    assert float((simulated - found).abs().mean()) < 0.2 * quantization_error  # ties may round differently


def test_the_graph_has_integer_weights_and_activations(int8_vision: QuantizedModel, tmp_path: Path) -> None:
    """Weights are int8, inputs uint8; matrices with a common input share its QuantizeLinear; all operators except
    attention are standard."""
    path = write_onnx_artifact(int8_vision, tmp_path / "onnx") / "onnx" / "vision_encoder_quantized.onnx"
    onnx.checker.check_model(str(path))
    graph = onnx.load(path, load_external_data=False).graph
    dtypes = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in dtypes]
    quantized_inputs = [node for node in graph.node if node.op_type == "QuantizeLinear"]

    assert {dtypes[name] for name in weights} == {onnx.TensorProto.INT8}
    assert len(weights) == 2 * 6 + 1 + 3 + 2
    assert {dtypes[node.input[2]] for node in quantized_inputs} == {onnx.TensorProto.UINT8}
    assert len(quantized_inputs) == 2 * 4 + 1 + 3 + 2
    assert {node.op_type for node in graph.node if node.domain} == {"MultiHeadAttention"}


def test_a_note_reports_the_fake_quantization(int8_vision: QuantizedModel) -> None:
    """The note has the number of matrices with quantized inputs."""
    matrices = sum(bool(record.activation) for record in int8_vision.records.values())
    assert f"inputs of {matrices} matrices fake-quantized on the grids of the artifact" in (
        open_runner(int8_vision.path, 1).notes
    )
