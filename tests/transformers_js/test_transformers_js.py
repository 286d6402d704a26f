"""Artifacts in transformers.js, as applications load them: tokens and logits equal those of the ONNX runner and torch.

`make transformers-js` installs the pinned packages and runs these tests; the default test run requires no Node.
"""

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.export import export
from mcpmq.families.inputs import Inputs
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import open_runner
from tests.checkpoint_tools import build_family
from tests.onnx_tools import write_onnx_artifact
from tests.reference_model import greedy_tokens, reference_model
from tests.tiny_families import TINY_FAMILIES, TinyFamily

pytestmark = pytest.mark.transformers_js
INSTALLED = "TRANSFORMERS_JS"  # environment variable: the folder that npm filled
QUESTION, COUNT = "What does the sign say?", 12
QWEN_CONTENT = f"<|vision_start|><|image_pad|><|vision_end|>{QUESTION}"
TILED_CONTENT = [{"type": "image"}, {"type": "text", "text": QUESTION}]
CLASSES = {
    "qwen2-vl": "Qwen2VLForConditionalGeneration",
    "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3-vl": "Qwen3VLForConditionalGeneration",
    "qwen3.5": "Qwen3_5ForConditionalGeneration",
}
FAMILIES = {one.name: one for one in TINY_FAMILIES if one.name in CLASSES}


@dataclass(frozen=True)
class Generation:
    """Inputs and output of transformers.js."""

    model: str
    tokens: list[int]
    pixels: NDArray[np.float64]
    grid: list[int]
    generated: list[int]
    logits: NDArray[np.float64]  # [generated tokens, vocabulary]


@pytest.fixture(scope="module")
def installed() -> Path:
    """The folder with transformers.js; tests are skipped only if the variable is not set."""
    if INSTALLED not in os.environ:
        pytest.skip("`make transformers-js` installs transformers.js and runs this")
    return Path(os.environ[INSTALLED])


@pytest.fixture(scope="module", params=list(FAMILIES.values()), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest, installed: Path) -> TinyFamily:
    """A family that transformers.js supports."""
    found: TinyFamily = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint of the family."""
    return Checkpoint.open(family.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module", params=["full", "phone-int4"])
def quantized(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> QuantizedModel:
    """The checkpoint unquantized, and in blocks of 4 and 8 bits."""
    return quantize(make_plan(checkpoint, Recipe.load(request.param)), tmp_path_factory.mktemp("quantized") / "codes")


@pytest.fixture(scope="module")
def image(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of a size that needs no resizing: libraries resize differently, and the pixels must be equal."""
    assert family.preprocessor
    unit = family.preprocessor["patch_size"] * family.preprocessor["merge_size"]
    return noise_image(tmp_path_factory.mktemp("images"), width=5 * unit, height=3 * unit)


def noise_image(folder: Path, width: int, height: int) -> Path:
    """Write an image of noise."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return folder / "noise.png"


def generate(installed: Path, artifact: Path, image: Path, content: object = QWEN_CONTENT) -> Generation:
    """Run the script in a process that can load models only from disk."""
    request = json.dumps({"image": str(image), "content": content, "count": COUNT})
    command = ["node", str(Path(__file__).with_name("generate.mjs")), str(installed), str(artifact)]
    process = subprocess.run(command, input=request, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return Generation(**result | {name: np.array(result[name]) for name in ("pixels", "logits")})


@pytest.fixture(scope="module")
def tiled(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """Tiny SmolVLM2 and its artifact."""
    folder = tmp_path_factory.mktemp("tiled")
    checkpoint = Checkpoint.open(build_family("smolvlm2", folder / "tiny"))
    quantized = quantize(make_plan(checkpoint, Recipe.load("full")), folder / "codes")
    return checkpoint, write_onnx_artifact(quantized, folder / "artifact")


@pytest.mark.parametrize(("width", "height"), [(168, 168), (150, 90), (60, 200)])
def test_tiles_of_images_give_the_tokens_and_logits_of_the_onnx_runner(
    width: int, height: int, installed: Path, tiled: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    """SmolVLM2 has the same tiles and tokens; transformers.js resizes them differently, so its pixels are used."""
    checkpoint, artifact = tiled
    found = generate(installed, artifact, noise_image(tmp_path, width, height), TILED_CONTENT)
    sample = encode(artifact, checkpoint, tmp_path / "noise.png")
    runner = open_runner(artifact, 1)
    pixels = found.pixels.reshape(found.grid).astype(np.float32)
    mask = np.ones((*found.grid[:2], *found.grid[3:]), np.bool_)
    features = runner.vision.run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})[0]
    with_features = replace(runner, precomputed=iter(np.split(features, len(sample.slices))))
    tokens = np.array([*sample.tokens[: sample.answer_start], *found.generated[:-1]], np.int64)

    embeddings = with_features.embed(replace(sample, tokens=tokens), len(tokens))
    logits, _ = runner.decode(embeddings, runner.empty_cache(), len(found.generated))

    assert found.model == "SmolVLMForConditionalGeneration"
    assert found.tokens == sample.tokens[: sample.answer_start].tolist()
    assert found.grid[1] == len(sample.slices)
    np.testing.assert_allclose(found.logits, logits, rtol=0, atol=1e-4)


def encode(artifact: Path, checkpoint: Checkpoint, image: Path) -> Inputs:
    """Encode the same question with the processor of mcpmq, from the files of the artifact."""
    return checkpoint.family.open_processor(artifact).encode("noise", image, QUESTION, "")


def run_onnx(artifact: Path, sample: Inputs, generated: list[int]) -> tuple[list[int], NDArray[np.float32]]:
    """Return the tokens of the ONNX runner, and its logits before every token in `generated`."""
    runner = open_runner(artifact, 1)
    tokens = np.array([*sample.tokens[: sample.answer_start], *generated[:-1]], np.int64)
    sample_with_answer = replace(sample, tokens=tokens)
    embeddings, positions = (
        runner.embed(sample_with_answer, len(tokens)),
        runner.vision_inputs.position_ids(sample_with_answer),
    )
    logits, _ = runner.decode(embeddings, runner.empty_cache(), len(generated), positions)
    return list(runner.generate(sample, COUNT))[: len(generated)], logits


def test_generation_equals_that_of_the_onnx_runner_and_of_torch(
    installed: Path, family: TinyFamily, checkpoint: Checkpoint, quantized: QuantizedModel, image: Path, tmp_path: Path
) -> None:
    """With float32 activations, transformers.js has the same model class, tokens, pixels, greedy answer and logits."""
    artifact = write_onnx_artifact(quantized, tmp_path / "artifact")
    found, sample = generate(installed, artifact, image), encode(artifact, checkpoint, image)
    inputs = checkpoint.family.open_vision_inputs(artifact).graph_inputs(sample.slices[0])
    continued, logits = run_onnx(artifact, sample, found.generated)
    arguments = checkpoint.family.open_processor(artifact).model_inputs

    assert found.model == CLASSES[family.name]
    assert found.tokens == sample.tokens[: sample.answer_start].tolist()
    assert found.grid == inputs["grid_thw"][0].tolist()
    np.testing.assert_allclose(found.pixels, inputs["pixel_values"].ravel(), rtol=0, atol=1e-6)
    assert len(found.generated) == COUNT or found.generated[-1] == end_token(artifact)
    assert found.generated == continued
    assert found.generated == greedy_tokens(reference_model(quantized), arguments, sample, len(found.generated))
    np.testing.assert_allclose(found.logits, logits, rtol=0, atol=1e-4)


def end_token(artifact: Path) -> int:
    """Return the end-of-text token."""
    end: int = json.loads((artifact / "generation_config.json").read_text())["eos_token_id"]
    return end


def test_8bit_activations_stay_close_to_the_onnx_runner(
    installed: Path, checkpoint: Checkpoint, quantized: QuantizedModel, image: Path, tmp_path: Path
) -> None:
    """With 8-bit activations, logits of another ONNX Runtime version differ by less than 0.2 standard deviations."""
    artifact = export(quantized, "onnx", tmp_path / "artifact").path
    found, sample = generate(installed, artifact, image), encode(artifact, checkpoint, image)
    _, logits = run_onnx(artifact, sample, found.generated)

    assert np.abs(found.logits - logits).max() < 0.2 * logits.std()


@pytest.mark.parametrize(("width", "height"), [(150, 90), (60, 200), (900, 700)])
def test_images_of_any_size_have_the_same_number_of_tokens(
    width: int, height: int, installed: Path, checkpoint: Checkpoint, quantized: QuantizedModel, tmp_path: Path
) -> None:
    """The resized image has the same size, although transformers.js interpolates pixels in another way."""
    image, artifact = noise_image(tmp_path, width, height), write_onnx_artifact(quantized, tmp_path / "artifact")
    found, sample = generate(installed, artifact, image), encode(artifact, checkpoint, image)

    assert found.tokens == sample.tokens[: sample.answer_start].tolist()
    assert found.generated
