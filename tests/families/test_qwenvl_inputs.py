"""Pixels, tokens and position ids of Qwen-VL, compared with transformers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.inputs import Inputs
from mcpmq.families.modeling_transformers import qwen2_vl
from mcpmq.families.position_ids import mrope_position_ids
from mcpmq.families.qwen2vl import QWEN2_VL
from mcpmq.families.qwenvl_inputs import QwenVlProcessor
from mcpmq.families.qwenvl_resizing import Resizing
from mcpmq.system.json_file import read_json
from tests.checkpoint_tools import edit_json
from tests.tiny_families import QWEN_VL_PREPROCESSOR, TINY_FAMILIES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Qwen2-VL."""
    [tiny] = [family for family in TINY_FAMILIES if family.name == QWEN2_VL.name]
    return tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> QwenVlProcessor:
    """Processor of the tiny checkpoint."""
    return QwenVlProcessor.open(checkpoint, QWEN2_VL.prompt_format)


def encode(processor: QwenVlProcessor, folder: Path, width: int, height: int) -> Inputs:
    """Encode a random image of a given size."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return processor.encode("noise", folder / "noise.png", "What does it say?", "red")


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (31, 500), (1000, 640), (13, 17)])
def test_pixels_are_those_of_transformers(size: tuple[int, int], processor: QwenVlProcessor, tmp_path: Path) -> None:
    """Patches and grids agree for images that are enlarged or reduced."""
    inputs = encode(processor, tmp_path, *size)
    settings: dict[str, Any] = QWEN_VL_PREPROCESSOR
    expected = Qwen2VLImageProcessorPil(**settings)(Image.open(tmp_path / "noise.png"), return_tensors="np")
    arguments = processor.model_inputs(inputs)

    assert arguments["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()
    np.testing.assert_allclose(arguments["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    [[start, end]] = inputs.image_bounds
    assert end - start == expected["image_grid_thw"].prod() // 4 == arguments["mm_token_type_ids"].sum()


@given(width=st.integers(10, 3000), ratio=st.floats(0.01, 100))
def test_sizes_are_those_of_transformers(width: int, ratio: float) -> None:
    """Resized sizes agree for all aspect ratios and bounds."""
    height = min(max(round(width * ratio), 1 + width // 200), 199 * width)
    for smallest, largest in ((56 * 56, 28 * 28 * 1280), (28 * 28, 28 * 28 * 4)):
        settings = Resizing(min_pixels=smallest, max_pixels=largest)
        expected = smart_resize(height, width, 28, smallest, largest)
        assert settings.best_size(width, height) == expected[::-1]


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (31, 500)])
def test_positions_are_those_of_transformers(
    size: tuple[int, int], checkpoint: Path, processor: QwenVlProcessor, tmp_path: Path
) -> None:
    """Time, row and column agree before, in and after the image."""
    inputs = encode(processor, tmp_path, *size)
    arguments = {name: torch.from_numpy(value) for name, value in processor.model_inputs(inputs).items()}
    del arguments["pixel_values"]

    expected, _ = qwen2_vl(read_json(checkpoint / "config.json")).model.get_rope_index(**arguments)  # type: ignore[operator, union-attr]

    np.testing.assert_array_equal(processor.resizing.position_ids(inputs), expected[:, 0].numpy())


def test_text_continues_after_the_longer_side_of_an_image() -> None:
    """The position ids of two images are those computed by hand."""
    positions = mrope_position_ids(11, [(1, 3), (5, 9)], [(1, 2), (2, 2)])

    assert positions.tolist() == [
        [0, 1, 1, 3, 4, 5, 5, 5, 5, 7, 8],
        [0, 1, 1, 3, 4, 5, 5, 6, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8],
    ]


def test_an_image_prompt_is_as_published(processor: QwenVlProcessor, tmp_path: Path) -> None:
    """The image tokens with their tags precede the question."""
    inputs = encode(processor, tmp_path, 84, 84)
    prompt = processor.tokenizer.decode(inputs.tokens[: inputs.answer_start].tolist(), skip_special_tokens=False)

    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{'<|image_pad|>' * 9}<|vision_end|>What does it say?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("key", ["patch_size", "merge_size", "temporal_patch_size"])
def test_patches_of_the_image_processor_must_be_those_of_the_model(key: str, checkpoint: Path, tmp_path: Path) -> None:
    """The error has both values."""
    for file in checkpoint.glob("*.json"):
        shutil.copyfile(file, tmp_path / file.name)
    given = edit_json(tmp_path / "preprocessor_config.json", **{key: 4})[key]

    with pytest.raises(CheckpointError, match=f"{key}` is {given} in config.json but 4"):
        QwenVlProcessor.open(tmp_path, QWEN2_VL.prompt_format)


def test_special_tokens_and_dropped_images_are_rejected(
    processor: QwenVlProcessor, checkpoint: Path, tmp_path: Path
) -> None:
    """A special token in a text, and a template that drops the image, raise an error."""
    with pytest.raises(DatasetError, match="special token"):
        processor.encode("one", None, "<|image_pad|>", "x")
    file = checkpoint / "chat_template.jinja"
    file.write_text("{{ 'no image' }}")
    try:
        with pytest.raises(CheckpointError, match="0 of 1 images"):
            encode(QwenVlProcessor.open(checkpoint, QWEN2_VL.prompt_format), tmp_path, 84, 84)
    finally:
        file.unlink()
