"""Block sensitivities equal the mean KLD of artifacts with one quantized block."""

from pathlib import Path

import pytest

from mcpmq.calibrate.forward import encode_samples
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.mixed_precision import sensitivity
from mcpmq.mixed_precision.sensitivity import block_sensitivities
from mcpmq.runners.token_metrics import TokenMetrics
from mcpmq.runners.torch import open_runner
from mcpmq.system.progress import silent
from tests.gguf_tools import quantize_with


def test_a_sensitivity_is_the_kld_of_a_model_with_one_quantized_block(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The sensitivity equals the mean KLD of an artifact whose weights of the block are on the probe scheme."""
    checkpoint, samples = Checkpoint.open(tiny_checkpoint), SampleSet.open(tiny_set).samples[:4]
    specs = [spec for spec in checkpoint.specs if spec.name.startswith("language.layers.1.") and spec.role == "matrix"]

    found = block_sensitivities(checkpoint, {"language.layers.1": specs}, samples, 1, silent)

    inputs = encode_samples(checkpoint.family.open_processor(checkpoint.path), samples, silent)
    quantized = quantize_with(tiny_checkpoint, tmp_path, **{spec.name.replace(".", "__"): "int4-g32" for spec in specs})
    original = TokenMetrics(inputs, tmp_path / "original", {})
    list(open_runner(tiny_checkpoint, 1).run(inputs, original))
    original.close()
    metrics = TokenMetrics(inputs, None, {"original": tmp_path / "original"})
    answers = list(open_runner(quantized.path, 1).run(inputs, metrics))
    metrics.close()
    divergences = [one for answer in answers for one in answer.compared["original"].kl_divergences]
    assert found["language.layers.1"] == pytest.approx(sum(divergences) / len(divergences), rel=1e-4)


def test_layers_between_measured_layers_are_interpolated() -> None:
    """The logarithm is linear between the nearest measured layers, in both directions from their middle."""
    measured = {"language.layers.0": 1.0, "language.layers.2": 1e-4, "language.layers.6": 1e-2, "vision.layers.3": 7.0}

    assert sensitivity._interpolate("language.layers.3", measured) == pytest.approx(10**-3.5)
    assert sensitivity._interpolate("language.layers.4", measured) == pytest.approx(1e-3)
    assert sensitivity._interpolate("language.layers.5", measured) == pytest.approx(10**-2.5)


def test_at_most_ten_layers_of_a_component_are_measured() -> None:
    """The first and the last layer are measured, and all blocks of components with few layers."""
    names = [*(f"language.layers.{layer}" for layer in range(28)), "projector", "head"]
    measured = sensitivity._measured_blocks(names)
    assert len(measured) == 10 + 2
    assert {"language.layers.0", "language.layers.27", "projector", "head"} <= set(measured)
    assert sensitivity._measured_blocks(names[:5]) == names[:5]
