"""Artifacts in ONNX Runtime GenAI, as applications load them: tokens and logits equal those of the ONNX runner.

`make genai` installs the pinned package and runs these tests; the default test run does not need it.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.export import export
from mcpmq.families.inputs import Inputs
from mcpmq.families.messages import Message
from mcpmq.formats.sharding import split_artifact
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import open_runner
from tests.checkpoint_tools import edit_json
from tests.genai.families import FAMILIES, GEMMA
from tests.tiny_families import TinyFamily

pytestmark = pytest.mark.genai
INSTALLED = "GENAI"  # environment variable: the folder of the package
QUESTION, COUNT = "What", 12
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGES = {"gemma-3": "<start_of_image>", "lfm2-vl": "<image>"}
TYPES = {"qwen2-vl": "qwen2_5_vl", "gemma-3": "gemma3"}
SIZES = {"gemma-3": (448, 448), "lfm2-vl": (320, 256)}  # that need no resizing, as 5 x 3 tokens of Qwen-VL
SENTENCEPIECE_DECODER = {  # of the published tokenizer; GenAI recognizes SentencePiece by it
    "type": "Sequence",
    "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}],
}


@dataclass(frozen=True)
class Generation:
    """Inputs and output of GenAI."""

    type: str
    tokens: list[int]
    pixels: NDArray[np.float32]
    generated: list[int]
    logits: NDArray[np.float32]  # [generated tokens, vocabulary]


@pytest.fixture(scope="module")
def installed() -> Path:
    """The folder with the package; tests are skipped only if the variable is not set."""
    if INSTALLED not in os.environ:
        pytest.skip("`make genai` installs ONNX Runtime GenAI and runs this")
    return Path(os.environ[INSTALLED])


@pytest.fixture(scope="module", params=list(FAMILIES.values()), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest, installed: Path) -> TinyFamily:
    """A family that GenAI runs."""
    found: TinyFamily = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny checkpoint of the family."""
    folder = family.build(tmp_path_factory.mktemp("checkpoint") / "tiny")
    if family is GEMMA:
        edit_json(folder / "tokenizer.json", decoder=SENTENCEPIECE_DECODER)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module", params=["full", "phone-int4"])
def artifact(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint unquantized, and in blocks of 4 and 8 bits with 8-bit activations."""
    folder = tmp_path_factory.mktemp("artifact")
    quantized = quantize(make_plan(checkpoint, Recipe.load(request.param)), folder / "codes")
    return export(quantized, "onnx", folder / "artifact").path


def image_of(family: TinyFamily, folder: Path, number: int = 0) -> Path:
    """Write an image of noise whose size needs no resizing."""
    if family.name in SIZES:
        return noise_image(folder, *SIZES[family.name], number)
    assert family.preprocessor
    unit = family.preprocessor["patch_size"] * family.preprocessor["merge_size"]
    return noise_image(folder, 5 * unit, (3 + number) * unit, number)


def noise_image(folder: Path, width: int, height: int, number: int = 0) -> Path:
    """Write an image of noise."""
    pixels = np.random.default_rng((width, number)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"noise{number}.png")
    return folder / f"noise{number}.png"


def run(installed: Path, family: TinyFamily, artifact: Path, *chats: list[Path]) -> subprocess.CompletedProcess[str]:
    """Ask the question after each list of images, in a process of its own: the package loads ONNX Runtime."""
    texts = [IMAGES.get(family.name, QWEN_IMAGE) * len(images) + QUESTION for images in chats]
    prompts = [
        {"messages": [{"role": "user", "content": text}], "images": list(map(str, images))}
        for text, images in zip(texts, chats, strict=True)
    ]
    command = [sys.executable, str(Path(__file__).with_name("generate.py"))]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    text = json.dumps({"model": str(artifact), "chats": prompts, "count": COUNT})
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, env=environment)


def generate(installed: Path, family: TinyFamily, artifact: Path, *chats: list[Path]) -> list[Generation]:
    """Return the inputs and outputs of each chat."""
    process = run(installed, family, artifact, *chats)
    assert process.returncode == 0, process.stderr
    return [
        Generation(**result | {name: np.array(result[name], np.float32) for name in ("pixels", "logits")})
        for result in json.loads(process.stdout)
    ]


def encode(checkpoint: Checkpoint, artifact: Path, images: list[Path]) -> Inputs:
    """Encode the same chat with the processor of mcpmq, from the files of the artifact."""
    content: tuple[Image.Image | str, ...] = (*(Image.open(one).convert("RGB") for one in images), QUESTION)
    return checkpoint.family.open_processor(artifact).encode_chat([Message("user", content)])


def assert_equals_runner(found: Generation, artifact: Path, sample: Inputs) -> None:
    """Check tokens, greedy answer and logits against the ONNX runner."""
    runner = open_runner(artifact, 1)
    predictions, logits = runner.predict(sample), []
    value = next(predictions)
    for token in found.generated:
        logits.append(value)
        value = predictions.send(token)

    assert found.tokens == sample.tokens[: sample.answer_start].tolist()
    assert len(found.generated) == COUNT or found.generated[-1] in end_tokens(artifact)
    assert found.generated == np.argmax(logits, axis=-1).tolist()
    np.testing.assert_allclose(found.logits, logits, rtol=0, atol=1e-5)


def end_tokens(artifact: Path) -> list[int]:
    """Return the tokens that end an answer."""
    tokens: list[int] = json.loads((artifact / "genai_config.json").read_text())["model"]["eos_token_id"]
    return tokens


def test_generation_equals_that_of_the_onnx_runner(
    installed: Path, family: TinyFamily, checkpoint: Checkpoint, artifact: Path, tmp_path: Path
) -> None:
    """GenAI has the same pixels, tokens, greedy answer and logits."""
    image = image_of(family, tmp_path)
    [found], sample = generate(installed, family, artifact, [image]), encode(checkpoint, artifact, [image])
    inputs = checkpoint.family.open_vision_inputs(artifact).graph_inputs(sample.slices[0])

    assert found.type == TYPES.get(family.name, checkpoint.config["model_type"])
    np.testing.assert_allclose(found.pixels, inputs["pixel_values"].ravel(), rtol=0, atol=1e-6)
    assert_equals_runner(found, artifact, sample)


def test_prompts_without_and_with_several_images(
    installed: Path, family: TinyFamily, checkpoint: Checkpoint, artifact: Path, tmp_path: Path
) -> None:
    """A prompt may have no image, or several, which have several sizes for Qwen-VL."""
    images = [image_of(family, tmp_path, number) for number in range(2)]
    chats: list[list[Path]] = [[], images]

    for found, chat in zip(generate(installed, family, artifact, *chats), chats, strict=True):
        assert_equals_runner(found, artifact, encode(checkpoint, artifact, chat))


def test_images_of_any_size_have_the_same_tokens(
    installed: Path, family: TinyFamily, checkpoint: Checkpoint, artifact: Path, tmp_path: Path
) -> None:
    """GenAI resizes an image to the same size with nearly the same pixels; LFM2-VL has no tiles there."""
    sizes = [(150, 90), (60, 200), (900, 700)]
    images = [[noise_image(tmp_path, *size, number)] for number, size in enumerate(sizes)]
    settings = checkpoint.family.open_vision_inputs(artifact)

    for found, chat in zip(generate(installed, family, artifact, *images), images, strict=True):
        sample = encode(checkpoint, artifact, chat)
        pixels = settings.graph_inputs(sample.slices[-1])["pixel_values"].ravel()  # a thumbnail follows the tiles
        assert (found.tokens == sample.tokens[: sample.answer_start].tolist()) == (len(sample.slices) == 1)
        assert np.abs(found.pixels - pixels).mean() < 0.005


def test_parts_of_a_release_load(
    installed: Path, family: TinyFamily, checkpoint: Checkpoint, artifact: Path, tmp_path: Path
) -> None:
    """Split files give the same answer."""
    image, parts = image_of(family, tmp_path), tmp_path / "parts"
    parts.mkdir()
    split_artifact(Artifact.open(artifact), parts, 500_000)
    [found] = generate(installed, family, parts, [image])

    assert_equals_runner(found, artifact, encode(checkpoint, artifact, [image]))


@pytest.mark.parametrize("size", [(256, 320), (320, 224), (640, 128)])
def test_images_of_several_sizes_are_an_error_for_lfm2_vl(
    size: tuple[int, int], installed: Path, family: TinyFamily, artifact: Path, tmp_path: Path
) -> None:
    """The images of a prompt must have one size: its vision graph has no padding."""
    if family.name != "lfm2-vl":
        pytest.skip("other families have no such limit")

    process = run(installed, family, artifact, [image_of(family, tmp_path), noise_image(tmp_path, *size, 1)])

    assert process.returncode != 0
    assert "RuntimeError" in process.stderr
