"""Torch rounds the inputs of matrices where the artifact says so, and ONNX Runtime computes the same with integers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.execution import torch_model
from mcpmq.families import family_named
from mcpmq.grids.activation import InputGrid
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners import onnx as onnx_runner
from mcpmq.runners.fake_quant import round_inputs
from mcpmq.runners.torch import open_runner
from tests.onnx_tools import artifact_of
from tests.reference_model import native_model

RECIPE = {
    "name": "integers",
    "weights": {"vision.layers.*": "int8-row", "projector.*": "int8-row"},
    "activations": {"vision.*": "u8", "projector.*": "u8"},
}


@pytest.fixture(scope="module")
def rounding(tiny_checkpoint: Path, mixed_set: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """The tiny checkpoint with integers that meet integers wherever images pass."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(RECIPE))
    return quantize(plan, tmp_path_factory.mktemp("rounding") / "quantized", mixed_set)


def _sees(model: nn.Module, side: int = 4) -> Tensor:
    pixels = torch.rand((1, 3, 14, 14 * side * side), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        features: Tensor = model.get_image_features(pixels, torch.tensor([[side, side]]))[0]  # type: ignore[operator]
    return features


def _rounding_model(quantized: Quantized) -> nn.Module:
    runner = open_runner(quantized.path, 1)
    for block in runner.native.blocks:
        runner.native.fill(block, runner.weights.floats)
    return runner.native.module


def test_the_manifest_has_the_range_of_every_rounded_input(rounding: Quantized) -> None:
    """One range a matrix, three for the packed projection; the widest each side of zero; none for all the others."""
    records = rounding.records.values()
    ranges = {record.name: record.input_ranges for record in records if record.input_ranges}

    assert set(ranges) == {record.name for record in records if record.activation}
    assert set(ranges) == {step.name for step in rounding.steps if str(step.scheme) == "int8-row"}
    assert {len(found) for name, found in ranges.items() if name != "projector.attention.qkv"} == {1}
    assert len(ranges["projector.attention.qkv"]) == 3
    assert all(low <= 0 <= high and low < high for found in ranges.values() for low, high in found)
    assert rounding.artifact.manifest.calibrated_on


def test_ranges_are_those_of_what_was_seen(
    rounding: Quantized, tiny_checkpoint: Path, mixed_set: CalibrationSet
) -> None:
    """The first layer's queries see the normed patches: their extremes over all samples, by a plain forward pass."""
    checkpoint, seen = Checkpoint.open(tiny_checkpoint), []
    processor = checkpoint.family.processor(tiny_checkpoint)
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs)
    for block in model.blocks:
        model.fill(block, lambda spec: torch_model.floats_of(checkpoint.load(spec), spec))
    query = model.module.vpm.encoder.layers[0].self_attn.q_proj  # type: ignore[union-attr, index]
    query.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr]
    for sample in mixed_set:
        inputs = processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
        tensors = {name: torch.from_numpy(value) for name, value in processor.arguments(inputs).items()}
        with torch.inference_mode():
            model.module(**tensors, use_cache=False)

    [(low, high)] = rounding.records["vision.layers.0.attention.q"].input_ranges or ()
    values = torch.cat([one.flatten() for one in seen])
    np.testing.assert_allclose([low, high], [float(values.min()), float(values.max())], rtol=1e-5)


def test_rounding_meets_every_kind_of_matrix(rounding: Quantized) -> None:
    """Coarse grids on one matrix at a time: what comes out moves, so none of them is missed."""
    family, quantized = family_named(rounding.artifact.manifest.family), rounding
    plain = _sees(native_model(quantized))
    for name in ("vision.layers.0.mlp.down", "projector.attention.qkv", "projector.attention.o", "projector.out"):
        model = torch_model.build(family, quantized.config, tuple(quantized.specs.values()))
        for block in model.blocks:
            model.fill(block, lambda spec: torch_model.floats_of(quantized.load(spec.name), spec))
        round_inputs(family, model, {name: (InputGrid(0.5, 8, 15),)})
        assert float((_sees(model.module) - plain).abs().max()) > 1e-3


def test_onnx_runtime_computes_what_torch_simulates(rounding: Quantized, tmp_path: Path) -> None:
    """The same grids and codes: far closer to one another than either is to the model without rounded inputs."""
    simulated, plain = _sees(_rounding_model(rounding)), _sees(native_model(rounding))
    vision = onnx_runner.open_runner(artifact_of(rounding, tmp_path / "onnx"), 1).vision
    pixels = torch.rand((1, 3, 14, 14 * 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    feeds = {"pixel_values": pixels.numpy(), "tgt_sizes": np.array([[4, 4]])}
    found = torch.from_numpy(vision.run(None, feeds)[0])

    moved, apart = float((simulated - plain).abs().mean()), float((simulated - found).abs().mean())
    assert moved > 1e-3
    assert apart < 0.2 * moved  # a value that falls between two codes may go to either


def test_integers_meet_integers_in_the_graph(rounding: Quantized, tmp_path: Path) -> None:
    """Signed weights and unsigned inputs, as every version of ONNX Runtime takes them; products that share an input
    share its rounding; no operator but standard ones, attention apart."""
    path = artifact_of(rounding, tmp_path / "onnx") / "onnx" / "vision_encoder_quantized.onnx"
    onnx.checker.check_model(str(path))
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in kinds]
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]

    assert {kinds[name] for name in weights} == {onnx.TensorProto.INT8}
    assert len(weights) == 2 * 6 + 1 + 3 + 2
    assert {kinds[node.input[2]] for node in rounded} == {onnx.TensorProto.UINT8}
    assert len(rounded) == 2 * 4 + 1 + 3 + 2
    assert {node.op_type for node in graph.node if node.domain} == {"MultiHeadAttention"}


def test_the_runner_says_that_inputs_are_rounded(rounding: Quantized) -> None:
    """A reader of the figures is told."""
    matrices = sum(bool(record.activation) for record in rounding.records.values())
    assert f"inputs of {matrices} matrices rounded as the artifact says" in open_runner(rounding.path, 1).notes
