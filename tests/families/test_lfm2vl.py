"""LFM2-VL: slices, tokens and sizes, compared with transformers."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.conversations.video_processors import processor_class
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError, FormatError
from mcpmq.execution.torch_model import build_module
from mcpmq.families import family_of
from mcpmq.families.lfm_inputs import LfmTiling
from tests.checkpoint_tools import build_family, edit_json
from tests.gguf_tools import export_gguf, quantize_with
from tests.tiny_families import LFM2_VL

SETTINGS: dict[str, Any] = {"min_image_tokens": 4, "max_image_tokens": 12, "tile_size": 64, "max_tiles": 6}
MAX_PATCHES = 12 * 2**2
TWO_LEVELS = 2.001 / 255 / 0.5  # torch and Pillow round averages of pixels twice


@cache
def _oracle(**changes: Any) -> Any:
    return processor_class("Lfm2VlImageProcessor")(**SETTINGS, **changes)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), splits=st.booleans(), thumbnail=st.booleans())
def test_slices_are_those_of_transformers(width: int, height: int, splits: bool, thumbnail: bool) -> None:
    """Images of any size and shape have the same sizes, tiles, thumbnail and pixels."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    changes = {"do_image_splitting": splits, "use_thumbnail": thumbnail}
    oracle = _oracle(**changes)(Image.fromarray(pixels), return_row_col_info=True, return_tensors="np")
    tiling = LfmTiling.model_validate({**SETTINGS, **changes})

    found = tiling.cut(Image.fromarray(pixels))
    arguments = tiling.vision_arguments(found.tiles)

    assert found.grid in ((oracle["image_rows"][0], oracle["image_cols"][0]), (0, 0))
    assert tiling.image_tokens(width, height, 0) == sum(map(tiling.num_tokens, found.tiles))
    longest = arguments["pixel_values"].shape[1]
    assume(longest <= MAX_PATCHES)  # for narrower images the mask of transformers is shorter than the patches
    np.testing.assert_array_equal(arguments["spatial_shapes"], oracle["spatial_shapes"])
    np.testing.assert_array_equal(arguments["pixel_attention_mask"], oracle["pixel_attention_mask"][:, :longest])
    np.testing.assert_allclose(arguments["pixel_values"], oracle["pixel_values"][:, :longest], rtol=0, atol=TWO_LEVELS)


@pytest.mark.parametrize(
    "text",
    [
        {"layer_types": None, "full_attn_idxs": [0, 2]},
        {"block_auto_adjust_ff_dim": False},
        {"block_ff_dim": 700, "block_multiple_of": 64, "block_ffn_dim_multiplier": 1.5},
    ],
)
@pytest.mark.parametrize("changes", [{}, {"tie_embedding": False}, {"projector_use_layernorm": False}])
def test_the_parameters_are_those_of_the_torch_class(text: dict[str, Any], changes: dict[str, Any]) -> None:
    """Layers with attention, the size of the MLP by the rules of the class, a tied head, and the norm of projectors."""
    config = _config(text_config=text, **changes)
    family = family_of(config)
    specs = family.tensor_specs(family.parse_architecture(config))

    module: Any = build_module(family, config)
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert {name: spec.shape for spec in specs for name in spec.parameter_names} == expected
    assert family.parse_architecture(config).language.tied_embeddings == module.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("text_config", {"conv_bias": True}, "conv_bias"),
        ("text_config", {"layer_types": ["conv", "full_attention"]}, "3 layers but 2 `layer_types`"),
        ("text_config", {"layer_types": ["conv"] * 3}, "no layer with attention"),
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("vision_config", {"num_patches": 17}, "17 positions"),
        ("vision_feature_layer", -2, "vision_feature_layer"),
    ],
)
def test_other_functions_are_rejected(key: str, changes: Any, message: str) -> None:
    """torch would compute another function than the exported files; the key is named."""
    config = _config(**{key: changes})
    with pytest.raises(CheckpointError, match=message):
        family_of(config).parse_architecture(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_patch_size": 14}, "`patch_size` is 16 in config.json but 14"),
        ({"downsample_factor": 4}, "`downsample_factor` is 2 in config.json but 4"),
        ({"tile_size": 500}, "tiles have 500 pixels .* multiple of the 32"),
    ],
)
def test_files_that_contradict_each_other_are_rejected(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    """The sizes of patches and tokens are in two files."""
    path = build_family("lfm2-vl", tmp_path)
    edit_json(path / "preprocessor_config.json", **changes)

    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path).family.open_processor(path)


def test_gguf_has_the_limits_of_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp would cut images by other limits."""
    path = build_family("lfm2-vl", tmp_path / "tiny")
    edit_json(path / "preprocessor_config.json", max_tiles=4)

    with pytest.raises(FormatError, match="`max_tiles` is 4, llama.cpp has the constant 10"):
        export_gguf(quantize_with(path, tmp_path, language___all="f16"), tmp_path)


def _config(**changes: Any) -> dict[str, Any]:
    """Return the tiny configuration with changed keys, also of its inner objects."""
    config = {key: value for key, value in LFM2_VL.config.items() if key != "image_token_id"}
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config
