"""Bits and errors by block."""

import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report.layer_errors import layer_errors


def test_errors_of_outputs_are_the_smallest_of_all_methods(tiny_int4: QuantizedModel, tiny_checkpoint: str) -> None:
    """The error of a calibrated block is the square root of the smallest relative squared error."""
    held_out = {"language.layers.0": {"rtn": 0.0625, "gptq": 0.0009}, "head": {"rtn": 0.25}}
    manifest = tiny_int4.artifact.manifest.model_copy(update={"held_out_errors": held_out})

    layers = layer_errors(Checkpoint.open(tiny_checkpoint), Artifact(tiny_int4.path, manifest))

    errors = {block.name: block.error for block in layers.blocks}
    assert layers.error_basis == "outputs"
    assert errors["language.layers.0"] == pytest.approx(0.03)
    assert errors["head"] == pytest.approx(0.5)
    assert errors["language.layers.1"] is None


def test_errors_of_weights_need_the_quantized_model(tiny_int4: QuantizedModel, tiny_checkpoint: str) -> None:
    """Without a quantized model next to the artifact its errors are unknown."""
    original, manifest = Checkpoint.open(tiny_checkpoint), tiny_int4.artifact.manifest

    assert layer_errors(original, tiny_int4.artifact).error_basis == "weights"
    exported = Artifact(tiny_int4.path / "elsewhere" / "gguf", manifest.model_copy(update={"kind": "gguf"}))
    assert layer_errors(original, exported).error_basis is None
