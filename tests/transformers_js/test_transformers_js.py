"""Artifacts in transformers.js, as applications load them: the tokens and logits of our own runner and of torch.

`make transformers-js` installs the pinned packages and runs this; the usual run of the tests needs no Node.
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
from mcpmq.families.family import Inputs
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import open_runner
from tests.onnx_tools import artifact_of
from tests.reference_model import continuation, native_module
from tests.tiny_families import TINY_FAMILIES, TinyFamily

pytestmark = pytest.mark.transformers_js
INSTALLED = "TRANSFORMERS_JS"  # names the folder that npm filled
QUESTION, COUNT = "What does the sign say?", 12
FAMILIES = {one.name: one for one in TINY_FAMILIES if one.name.startswith("qwen")}
CLASSES = {
    "qwen2-vl": "Qwen2VLForConditionalGeneration",
    "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3-vl": "Qwen3VLForConditionalGeneration",
}


@dataclass(frozen=True)
class Said:
    """What transformers.js was fed and made of it."""

    model: str
    tokens: list[int]
    pixels: NDArray[np.float64]
    grid: list[int]
    said: list[int]
    logits: NDArray[np.float64]  # [tokens said, vocabulary]


@pytest.fixture(scope="module")
def installed() -> Path:
    """The folder with transformers.js; where it is named, anything that is missing fails instead of being skipped."""
    if INSTALLED not in os.environ:
        pytest.skip("`make transformers-js` installs transformers.js and runs this")
    return Path(os.environ[INSTALLED])


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest, installed: Path) -> TinyFamily:
    """One that transformers.js has a class for."""
    found: TinyFamily = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its tiny checkpoint."""
    return Checkpoint.open(family.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module", params=["full", "phone-int4"])
def quantized(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Quantized:
    """With nothing quantized, and in blocks of 4 and 8 bits."""
    return quantize(make_plan(checkpoint, Recipe.load(request.param)), tmp_path_factory.mktemp("quantized") / "codes")


@pytest.fixture(scope="module")
def image(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of a size that no one resizes: libraries resize differently, and pixels are to be the same."""
    assert family.preprocessor
    unit = family.preprocessor["patch_size"] * family.preprocessor["merge_size"]
    return drawn(tmp_path_factory.mktemp("images"), width=5 * unit, height=3 * unit)


def drawn(folder: Path, width: int, height: int) -> Path:
    """A picture of noise."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return folder / "noise.png"


def in_transformers_js(installed: Path, artifact: Path, image: Path) -> Said:
    """The script's answer, in a process that can reach no model but those on this disk."""
    asked = json.dumps({"image": str(image), "question": QUESTION, "count": COUNT})
    command = ["node", str(Path(__file__).with_name("continues.mjs")), str(installed), str(artifact)]
    ran = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return Said(**told | {name: np.array(told[name]) for name in ("pixels", "logits")})


def encoded(artifact: Path, checkpoint: Checkpoint, image: Path) -> Inputs:
    """The same question, by our processor from the artifact's own files."""
    return checkpoint.family.processor(artifact).encode("noise", image, QUESTION, "")


def ours(artifact: Path, sample: Inputs, said: list[int]) -> tuple[list[int], NDArray[np.float32]]:
    """What our runner says, as far as the other went, and its logits before every token that the other said."""
    runner = open_runner(artifact, 1)
    tokens = np.array([*sample.tokens[: sample.answer_start], *said[:-1]], np.int64)
    known = replace(sample, tokens=tokens)
    embeddings, positions = runner.embed(known, len(tokens)), runner.pixels.positions(known)
    logits, _ = runner.decode(embeddings, runner.empty_cache(), len(said), positions)
    return runner.generate(sample, COUNT)[: len(said)], logits


def test_an_image_is_read_as_by_our_runner_and_by_torch(
    installed: Path, family: TinyFamily, checkpoint: Checkpoint, quantized: Quantized, image: Path, tmp_path: Path
) -> None:
    """From the folder alone: the family's class, our tokens and pixels, and greedily the same answer to the last logit.
    Activations are float32 here, as in torch, which computes with the dequantized weights."""
    artifact = artifact_of(quantized, tmp_path / "artifact")
    found, sample = in_transformers_js(installed, artifact, image), encoded(artifact, checkpoint, image)
    fed = checkpoint.family.pixels(artifact).graph_inputs(sample.slices[0])
    continued, logits = ours(artifact, sample, found.said)
    arguments = checkpoint.family.processor(artifact).arguments

    assert found.model == CLASSES[family.name]
    assert found.tokens == sample.tokens[: sample.answer_start].tolist()
    assert found.grid == fed["grid_thw"][0].tolist()
    np.testing.assert_allclose(found.pixels, fed["pixel_values"].ravel(), rtol=0, atol=1e-6)
    assert len(found.said) == COUNT or found.said[-1] == last_token(artifact)
    assert found.said == continued
    assert found.said == continuation(native_module(quantized), arguments, sample, len(found.said))
    np.testing.assert_allclose(found.logits, logits, rtol=0, atol=1e-4)


def last_token(artifact: Path) -> int:
    """The token behind which generation stops."""
    end: int = json.loads((artifact / "generation_config.json").read_text())["eos_token_id"]
    return end


def test_what_is_exported_for_users_stays_near_our_runner(
    installed: Path, checkpoint: Checkpoint, quantized: Quantized, image: Path, tmp_path: Path
) -> None:
    """With activations of 8 bits a last digit can tip a rounding: logits of another version of the runtime lie within
    a fifth of their standard deviation, which is near 1."""
    artifact = export(quantized, "onnx", tmp_path / "artifact").path
    found, sample = in_transformers_js(installed, artifact, image), encoded(artifact, checkpoint, image)
    _, logits = ours(artifact, sample, found.said)

    assert np.abs(found.logits - logits).max() < 0.2 * logits.std()


@pytest.mark.parametrize(("width", "height"), [(150, 90), (60, 200), (900, 700)])
def test_an_image_of_any_size_becomes_as_many_tokens(
    width: int, height: int, installed: Path, checkpoint: Checkpoint, quantized: Quantized, tmp_path: Path
) -> None:
    """Bounds and ratio of sides decide the size, which is ours; how pixels are found is the library's, which
    in Node takes no mean of those that it drops."""
    image, artifact = drawn(tmp_path, width, height), artifact_of(quantized, tmp_path / "artifact")
    found, sample = in_transformers_js(installed, artifact, image), encoded(artifact, checkpoint, image)

    assert found.tokens == sample.tokens[: sample.answer_start].tolist()
    assert found.said
