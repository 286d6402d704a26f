"""Tests of the image sizes that llama.cpp does not resize."""

from pathlib import Path

import pytest
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.serving.preprocessing import EnginePreprocessing
from tests.gguf_tools import export_gguf
from tests.tiny_families import TINY_FAMILIES


@pytest.mark.parametrize(
    ("size", "resized"), [((112, 112), False), ((112, 56), True), ((224, 224), True), ((56, 56), True)]
)
def test_slices_are_square(reference_gguf: Artifact, size: tuple[int, int], resized: bool) -> None:
    """Only an image of the size of a slice, here 112 pixels, is not resized."""
    [mmproj] = reference_gguf.component_files("vision+projector")

    assert EnginePreprocessing.read(mmproj).resizes(Image.new("RGB", size)) == resized


def test_qwen_resizes_to_multiples_of_an_image_token(tmp_path: Path) -> None:
    """An image whose sides are multiples of the square of one token is not resized."""
    [family] = [one for one in TINY_FAMILIES if one.name == "qwen2-vl"]
    checkpoint = Checkpoint.open(family.build(tmp_path / "tiny"))
    quantized = quantize(make_plan(checkpoint, Recipe.load("full")), tmp_path / "full")
    [mmproj] = export_gguf(quantized, tmp_path).component_files("vision+projector")

    read = EnginePreprocessing.read(mmproj)

    assert read == EnginePreprocessing(0, 28)
    assert not read.resizes(Image.new("RGB", (56, 84)))
    assert read.resizes(Image.new("RGB", (56, 85)))
