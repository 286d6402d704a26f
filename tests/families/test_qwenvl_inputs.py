"""Pixels, tokens and positions of a Qwen-VL, against transformers' own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from mcpmq.errors import CalibrationError, CheckpointError
from mcpmq.families.family import Inputs
from mcpmq.families.modeling_transformers import qwen2_vl
from mcpmq.families.position_ids import sectioned_positions
from mcpmq.families.qwen2vl import QWEN2_VL
from mcpmq.families.qwenvl_inputs import QwenVlProcessor, Resizing
from mcpmq.system.json_file import read_json
from tests.tiny_families import QWEN_VL_PREPROCESSOR, TINY_FAMILIES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2-VL."""
    [tiny] = [family for family in TINY_FAMILIES if family.name == QWEN2_VL.name]
    return tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> QwenVlProcessor:
    """Its own preprocessing."""
    return QwenVlProcessor.open(checkpoint, QWEN2_VL.layout)


def encode(processor: QwenVlProcessor, folder: Path, width: int, height: int) -> Inputs:
    """Noise of a size."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return processor.encode("noise", folder / "noise.png", "What does it say?", "red")


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (31, 500), (1000, 640), (13, 17)])
def test_pixels_are_those_of_transformers(size: tuple[int, int], processor: QwenVlProcessor, tmp_path: Path) -> None:
    """Every patch in its place, to a rounding of the normalisation; images grow and shrink alike."""
    inputs = encode(processor, tmp_path, *size)
    theirs = Qwen2VLImageProcessorPil(**QWEN_VL_PREPROCESSOR)(Image.open(tmp_path / "noise.png"), return_tensors="np")
    arguments = processor.arguments(inputs)

    assert arguments["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist()
    np.testing.assert_allclose(arguments["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-6)
    [[start, end]] = inputs.image_bounds
    assert end - start == theirs["image_grid_thw"].prod() // 4 == arguments["mm_token_type_ids"].sum()


@given(width=st.integers(10, 3000), ratio=st.floats(0.01, 100))
def test_sizes_are_those_of_transformers(width: int, ratio: float) -> None:
    """Whatever the shape and the bounds."""
    height = min(max(round(width * ratio), 1 + width // 200), 199 * width)
    for smallest, largest in ((56 * 56, 28 * 28 * 1280), (28 * 28, 28 * 28 * 4)):
        settings = Resizing(min_pixels=smallest, max_pixels=largest)
        expected = smart_resize(height, width, 28, smallest, largest)
        assert settings.best_size(width, height) == expected[::-1]


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (31, 500)])
def test_positions_are_those_of_transformers(
    size: tuple[int, int], checkpoint: Path, processor: QwenVlProcessor, tmp_path: Path
) -> None:
    """By time, row and column, before, in and after the image."""
    inputs = encode(processor, tmp_path, *size)
    arguments = {name: torch.from_numpy(value) for name, value in processor.arguments(inputs).items()}
    del arguments["pixel_values"]

    theirs, _ = qwen2_vl(read_json(checkpoint / "config.json")).model.get_rope_index(**arguments)  # type: ignore[operator, union-attr]

    np.testing.assert_array_equal(processor.resizing.positions(inputs), theirs[:, 0].numpy())


def test_text_goes_on_where_the_longer_side_of_an_image_ends() -> None:
    """Two images, counted by hand."""
    positions = sectioned_positions(11, [(1, 3), (5, 9)], [(1, 2), (2, 2)])

    assert positions.tolist() == [
        [0, 1, 1, 3, 4, 5, 5, 5, 5, 7, 8],
        [0, 1, 1, 3, 4, 5, 5, 6, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8],
    ]


def test_the_prompt_is_the_published_one(processor: QwenVlProcessor, tmp_path: Path) -> None:
    """The image stands before the question, between its two tags."""
    inputs = encode(processor, tmp_path, 84, 84)
    prompt = processor.tokenizer.decode(inputs.tokens[: inputs.answer_start].tolist(), skip_special_tokens=False)

    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{'<|image_pad|>' * 9}<|vision_end|>What does it say?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_does_not_fit_is_refused(processor: QwenVlProcessor, checkpoint: Path, tmp_path: Path) -> None:
    """Special tokens in a text, and a template that drops the image."""
    with pytest.raises(CalibrationError, match="special token"):
        processor.encode("one", None, "<|image_pad|>", "x")
    file = checkpoint / "chat_template.jinja"
    file.write_text("{{ 'no image' }}")
    try:
        with pytest.raises(CheckpointError, match="0 of 1 images"):
            encode(QwenVlProcessor.open(checkpoint, QWEN2_VL.layout), tmp_path, 84, 84)
    finally:
        file.unlink()
