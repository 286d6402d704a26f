"""Videos in llama.cpp: frames that are encoded together, and times that its cache can hold."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn, Video
from mcpmq.errors import EngineError
from mcpmq.families.inputs import Inputs
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.gguf import GgufRunner, open_runner
from tests.gguf_tools import export_gguf
from tests.loss_tools import answer_losses
from tests.tiny_families import TINY_FAMILIES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Tiny Qwen2.5-VL."""
    [tiny] = [family for family in TINY_FAMILIES if family.name == "qwen2.5-vl"]
    return Checkpoint.open(tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def runner(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> GgufRunner:
    """The checkpoint in llama.cpp."""
    folder = tmp_path_factory.mktemp("gguf")
    full = quantize(make_plan(checkpoint, Recipe.load("full")), folder / "full")
    return open_runner(export_gguf(full, folder).path, 1, f32_attention=True)


def _inputs(checkpoint: Checkpoint, folder: Path, fps: float) -> Inputs:
    files = tuple(folder / f"{number}.png" for number in range(4))
    for number, file in enumerate(files):
        Image.new("RGB", (112, 84), (60 * number, 0, 0)).save(file)
    prompt = Turn("user", (Video(files, fps), "Where?"))
    processor = checkpoint.family.open_processor(checkpoint.path)
    return processor.encode_turns("one", [prompt, Turn("assistant", ("here",))])


def test_two_frames_are_encoded_together(runner: GgufRunner, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The embeddings depend on both frames and their order; equal frames are those of an image."""
    first, second = _inputs(checkpoint, tmp_path, 8.0).slices[0]
    pairs = [np.stack(pair) for pair in ((first, second), (second, first), (first, first))]

    found = [runner.encode_slice(pair) for pair in pairs]

    assert np.abs(found[0] - found[1]).max() > 1e-2
    assert np.abs(found[0] - found[2]).max() > 1e-2
    np.testing.assert_allclose(found[2], runner.encode_slice(first), rtol=0, atol=1e-5)


def test_times_after_those_of_the_text_are_errors(runner: GgufRunner, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The second pair of frames is 4 * 2 / fps positions after the first one; the frames have 4 columns."""
    assert len(answer_losses(runner, [_inputs(checkpoint, tmp_path, 2.01)])[0]) > 0

    with pytest.raises(
        EngineError, match="sample `one`: the text after a video begins 4 positions .* 4 positions after"
    ):
        answer_losses(runner, [_inputs(checkpoint, tmp_path, 2.0)])


def test_frames_that_llama_cpp_resizes_are_errors(runner: GgufRunner) -> None:
    """The mmproj file has the bounds of images."""
    with pytest.raises(EngineError, match="resizes frames of 28x56 pixels to 56x112"):
        runner.encode_slice(np.zeros((2, 56, 28, 3), np.uint8))
