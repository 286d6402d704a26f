"""W8A8: int8 weights with int8 inputs that have a scale for each token, in PyTorch and in the engines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.estimate.forecast import forecast
from mcpmq.export import export
from mcpmq.families.inputs import Inputs
from mcpmq.formats import FormatName, check_plan
from mcpmq.formats.hf.reader import HuggingFaceArtifact
from mcpmq.grids import dequantize
from mcpmq.grids.activation import TokenGrid
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import make_plan
from mcpmq.qtensor import QTensor
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.runner import Runner
from mcpmq.runners.torch import open_runner as torch_runner
from mcpmq.runners.transformers import load_artifact
from mcpmq.scheme import IntegerScheme
from mcpmq.system.json_file import read_json
from tests.onnx_tools import random_weight, run_matmul
from tests.tiny_families import QWEN2_VL

WEIGHTS, TOKENS = {"language.*": "int8-row"}, {"language.*": "s8-token"}
W8A8 = Recipe.model_validate({"name": "w8a8", "weights": WEIGHTS, "activations": TOKENS})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model that transformers, ONNX Runtime and llama.cpp run."""
    return Checkpoint.open(QWEN2_VL.build(tmp_path_factory.mktemp("qwen") / "tiny"))


@pytest.fixture(scope="module")
def quantized(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The quantized model, which needs no calibration."""
    return quantize(make_plan(checkpoint, W8A8), tmp_path_factory.mktemp("w8a8") / "quantized")


def test_every_token_has_its_own_scale() -> None:
    """Values are multiples of the largest magnitude of the token divided by 127.5; zeros stay."""
    values = torch.randn(2, 5, 33, generator=torch.manual_seed(0)) * torch.logspace(-3, 3, 5)[None, :, None]
    values[1, 2] = 0
    found = TokenGrid().fake_quantize(values)
    for token, expected in zip(values.reshape(-1, 33).numpy(), found.reshape(-1, 33).numpy(), strict=True):
        scale = np.float32(np.abs(token).max() / np.float32(127.5)) or np.float32(1)
        codes = np.clip(np.rint(token / scale), -128, 127)
        np.testing.assert_allclose(expected, codes * scale, rtol=1e-6, atol=1e-12)
    assert not found[1, 2].any()


def test_transformers_computes_as_the_fake_quantization(
    quantized: QuantizedModel, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """transformers has the logits of PyTorch with rounded inputs; without rounding they differ."""
    sample = checkpoint.family.open_processor(checkpoint.path).encode("a", None, "7 + 1 ?", "8 !")
    weights_only = Recipe.model_validate({"name": "w8a16", "weights": WEIGHTS})
    others = quantize(make_plan(checkpoint, weights_only), tmp_path / "w8a16")
    expected, unrounded = (_logits(torch_runner(one.path, 1), sample) for one in (quantized, others))
    loaded = HuggingFaceArtifact.open(export(quantized, "compressed-tensors", tmp_path / "hf").path)
    np.testing.assert_allclose(_logits(load_artifact(loaded, torch.float32), sample), expected, atol=2e-3)
    assert np.abs(unrounded - expected).max() > 0.02


def test_onnx_runtime_multiplies_the_codes_of_tokens(tmp_path: Path) -> None:
    """Sums of products are exact, also of large codes, and a token of zeros has zeros."""
    scheme = IntegerScheme(8, None)
    weight, bias = random_weight(scheme, 48, 200), torch.randn(48, generator=torch.manual_seed(1))
    random = np.random.default_rng(2)
    values = (random.normal(size=(1, 6, 200)) * np.logspace(-2, 2, 6)[None, :, None]).astype(np.float32)
    values[0, 4] = 0
    values[0, 5] = np.abs(values[0, 5]).max()  # all codes are the largest
    found = run_matmul(tmp_path, weight, values, bias, "s8-token")
    rounded = TokenGrid().fake_quantize(torch.from_numpy(values))
    expected = (rounded.double() @ dequantize(weight).double().T + bias).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found - (values @ dequantize(weight).numpy().T + bias.numpy())).max() > 1e-3


def _logits(runner: Runner, sample: Inputs) -> NDArray[np.float32]:
    [found] = runner.run([sample], lambda _, rows: np.stack([row.copy() for row in rows]))
    return found


@pytest.mark.parametrize("name", ["compressed-tensors", "onnx"])
def test_files_have_their_forecast_size(name: FormatName, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One pass writes the forecast bytes, and the manifest has no input ranges."""
    plan = make_plan(checkpoint, W8A8)
    [estimate] = forecast(plan, [name], 1024).formats
    artifact = convert_in_one_pass(plan, name, tmp_path / name)
    written = {(one.path, one.nbytes) for one in artifact.manifest.files}
    assert {(one.path, one.nbytes) for one in estimate.files.files} == written
    matrices = [one for one in artifact.manifest.weights if one.activation]
    assert matrices
    assert {(one.activation, one.input_ranges) for one in matrices} == {("s8-token", None)}


def test_config_and_codes_are_those_of_compressed_tensors(quantized: QuantizedModel, tmp_path: Path) -> None:
    """The library reads the configuration as dynamic int8 tokens, and files have the codes of the quantized model."""
    from compressed_tensors.quantization import QuantizationConfig

    artifact = export(quantized, "compressed-tensors", tmp_path / "out")
    config = read_json(artifact.path / "config.json")["quantization_config"]
    group = QuantizationConfig.model_validate(config).config_groups["group_0"]
    assert config["format"] == "int-quantized"
    assert (group.input_activations.num_bits, group.input_activations.strategy) == (8, "token")
    assert group.input_activations.dynamic is True
    reader = HuggingFaceArtifact.open(artifact.path)
    weight, expected = (one.load("language.layers.0.attention.q") for one in (reader, quantized))
    assert isinstance(weight, QTensor)
    assert isinstance(expected, QTensor)
    assert torch.equal(dequantize(weight), dequantize(expected))


def test_formats_without_int8_tokens_reject_them(checkpoint: Checkpoint) -> None:
    """The hint names the formats that have them; compressed-tensors needs them for all quantized weights or none."""
    with pytest.raises(FormatError, match="does not support quantized activations") as caught:
        check_plan(make_plan(checkpoint, W8A8), "gguf")
    assert "onnx, compressed-tensors" in caught.value.hint
    mixed = {"name": "mixed", "weights": WEIGHTS, "activations": {"language.layers.0.*": "s8-token"}}
    with pytest.raises(FormatError, match="one group of weights"):
        check_plan(make_plan(checkpoint, Recipe.model_validate(mixed)), "compressed-tensors")
