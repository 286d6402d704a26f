"""Settings of the image processor, applied as transformers does or rejected."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mcpmq.errors import CheckpointError
from mcpmq.families.preprocessor import PreprocessorConfig, has_preprocessor, read_preprocessor
from mcpmq.families.qwenvl_resizing import Resizing
from mcpmq.families.slicing import ConfiguredSlicing, MergedSlicing, Slicing, slice_image, target_sizes
from tests.tiny import PREPROCESSOR
from tests.tiny_families import MINICPM_V_2_CONFIG, MINICPM_V_4_6, QWEN_VL_PREPROCESSOR

CHANGES: list[dict[str, Any]] = [
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"rescale_factor": 0.01, "image_mean": 0.25, "image_std": 0.5},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.5, 2.5, 3.5]},
    {"do_convert_rgb": None, "min_pixels": None, "do_pad": None},
    *({"resample": number} for number in range(6)),
]


def write(folder: Path, file: str, content: object) -> Path:
    (folder / file).write_text(json.dumps(content))
    return folder


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_settings_of_qwen_vl_are_applied_as_in_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    """Patches agree for every step, factor, statistic and filter."""
    settings = {**QWEN_VL_PREPROCESSOR, **changes}
    expected = Qwen2VLImageProcessorPil(**settings)(noise(100, 70), return_tensors="np")
    resizing = Resizing.open(write(tmp_path, "preprocessor_config.json", settings))

    patches = resizing.graph_inputs(resizing.resize(noise(100, 70)))

    np.testing.assert_allclose(patches["pixel_values"], expected["pixel_values"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_settings_of_4_6_are_applied_as_in_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    """Packed patches of all slices agree."""
    settings = {**(MINICPM_V_4_6.preprocessor or {}), **changes}
    expected = MiniCPMV4_6ImageProcessorPil(**settings)(noise(300, 170), return_tensors="np")
    write(tmp_path, "config.json", {"downsample_mode": "16x"})
    slicing = MergedSlicing.open(write(tmp_path, "preprocessor_config.json", settings))

    _, slices = slice_image(noise(300, 170), slicing)

    np.testing.assert_array_equal(target_sizes(slices, 14), expected["target_sizes"])
    packed = slicing.pack_slices(slices)[None]
    np.testing.assert_allclose(packed, expected["pixel_values"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", CHANGES[:6], ids=str)
def test_the_normalization_of_pixels_from_0_to_1_is_equivalent(changes: dict[str, Any]) -> None:
    """Engines that divide by 255 get means and standard deviations with the same result."""
    resizing = Resizing.model_validate({key: value for key, value in changes.items() if value is not None})
    pixels = np.array(noise(28, 28))
    mean, std = (np.array(values) for values in resizing.normalization)

    expected = resizing.graph_inputs(pixels)["pixel_values"]
    settings = Resizing(image_mean=tuple(mean), image_std=tuple(std))

    np.testing.assert_allclose(settings.graph_inputs(pixels)["pixel_values"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("schema", "settings", "message"),
    [
        (Resizing, {"do_resize": False}, "do_resize"),
        (Resizing, {"do_convert_rgb": False}, "do_convert_rgb"),
        (Resizing, {"do_center_crop": True}, "do_center_crop"),
        (Resizing, {"do_pad": True}, "do_pad"),
        (Resizing, {"resample": 6}, "resample"),
        (Resizing, {"do_normalize": None}, "do_normalize is null"),
        (Resizing, {"image_mean": None}, "image_mean is null"),
        (Resizing, {"rescale_factor": 0}, "rescale_factor"),
        (Resizing, {"image_std": 0}, "image_std"),
        (Resizing, {"image_mean": [0.5, 0.5]}, "image_mean"),
        (Resizing, {"size": {"height": 224, "width": 224}}, "shortest_edge"),
        (Resizing, {"size": {"shortest_edge": 3136}}, "longest_edge"),
        (Resizing, {"size": 224}, "size"),
        (Resizing, {"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        (MergedSlicing, {"image_processor_type": "Qwen2VLImageProcessor"}, "image_processor_type"),
        (MergedSlicing, {"do_image_splitting": True}, "do_image_splitting"),
        (Slicing, {"resample": 2}, "`resample`"),
        (Slicing, {"do_normalize": False}, "`do_normalize`"),
        (Slicing, {"do_rescale": False}, "`do_rescale`"),
        (Slicing, {"rescale_factor": 1.0}, "`rescale_factor`"),
        (Slicing, {"im_start": "<img>"}, "im_start"),
        (Slicing, {"slice_end": "<slice>"}, "slice_end"),
        (Slicing, {"unk": "<|image|>"}, "unk"),
    ],
)
def test_settings_that_are_not_supported_are_rejected(
    schema: type[PreprocessorConfig], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The error has the file and the key; the published code of 2.6 ignores the keys of pixels."""
    write(tmp_path, "config.json", {})
    write(tmp_path, "preprocessor_config.json", settings)

    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json.*{message}") as caught:
        schema.open(tmp_path)
    assert caught.value.hint


def test_steps_that_are_off_and_other_keys_are_accepted(tmp_path: Path) -> None:
    """Published files have keys for other purposes; steps that are off do not matter."""
    settings = {**PREPROCESSOR, "do_center_crop": False, "do_pad": None, "crop_size": None, "processor_class": "A"}

    assert Slicing.open(write(tmp_path, "preprocessor_config.json", settings)).scale_resolution == 56


@pytest.mark.parametrize(
    ("settings", "bounds"),
    [
        ({}, (3136, 1003520)),
        ({"size": {"shortest_edge": 100, "longest_edge": 200}}, (100, 200)),
        ({"size": {"shortest_edge": 100}, "max_pixels": 300}, (100, 300)),
        ({"size": {"shortest_edge": 100, "longest_edge": 200}, "min_pixels": 150, "max_pixels": None}, (150, 200)),
        ({"min_pixels": 150, "max_pixels": 160}, (150, 160)),
        ({"size": None}, (3136, 1003520)),
    ],
)
def test_bounds_of_the_area_have_the_precedence_of_transformers(
    settings: dict[str, Any], bounds: tuple[int, int], tmp_path: Path
) -> None:
    """Older files have `min_pixels` and `max_pixels`, newer ones `size`; the older keys take precedence."""
    expected = Qwen2VLImageProcessorPil(**{**QWEN_VL_PREPROCESSOR, "min_pixels": None, "max_pixels": None, **settings})

    resizing = Resizing.open(write(tmp_path, "preprocessor_config.json", settings))

    assert (resizing.size.shortest_edge, resizing.size.longest_edge) == bounds
    assert (expected.size["shortest_edge"], expected.size["longest_edge"]) == bounds


def test_nested_settings_take_precedence(tmp_path: Path) -> None:
    """transformers 5 writes `image_processor` of processor_config.json; a file without the key is skipped."""
    write(tmp_path, "processor_config.json", {"processor_class": "Qwen2VLProcessor"})
    assert not has_preprocessor(tmp_path)
    write(tmp_path, "preprocessor_config.json", {"patch_size": 16, "crop_size": None})
    assert read_preprocessor(tmp_path) == ({"patch_size": 16}, "preprocessor_config.json")
    write(tmp_path, "processor_config.json", {"image_processor": {"patch_size": 18}})
    assert read_preprocessor(tmp_path) == ({"patch_size": 18}, "processor_config.json")
    assert has_preprocessor(tmp_path)


def test_missing_and_invalid_settings_are_rejected(tmp_path: Path) -> None:
    """Both places are named."""
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json") as caught:
        Resizing.open(tmp_path)
    assert "processor_config.json" in caught.value.hint
    assert "image_processor" in caught.value.hint
    write(tmp_path, "processor_config.json", {"image_processor": [1]})
    with pytest.raises(CheckpointError, match="`image_processor` .* is not an object"):
        Resizing.open(tmp_path)


def test_2_0_reads_its_configuration_without_a_preprocessor(tmp_path: Path) -> None:
    """Settings of the image processor must agree with config.json."""
    write(tmp_path, "config.json", MINICPM_V_2_CONFIG)
    assert ConfiguredSlicing.open(tmp_path).max_slice_nums == 9
    write(tmp_path, "processor_config.json", {"image_processor": {"scale_resolution": 56, "max_slice_nums": 4}})
    with pytest.raises(CheckpointError, match="`max_slice_nums` is 9"):
        ConfiguredSlicing.open(tmp_path)
