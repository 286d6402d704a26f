"""Gemma 3: images, tokens and sizes, compared with transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.execution.torch_model import build_module
from mcpmq.families import family_of
from mcpmq.families.gemma_inputs import GemmaResizing
from mcpmq.families.residual import stream_reader
from tests.checkpoint_tools import build_family, edit_json
from tests.tiny_families import GEMMA_3

SETTINGS: dict[str, Any] = {"size": {"height": 24, "width": 24}, "image_mean": [0.4, 0.5, 0.6]}
LAYER_TYPES = ["full_attention", "sliding_attention", "sliding_attention"]
SEPARATE_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
}


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150))
def test_images_are_those_of_transformers(width: int, height: int) -> None:
    """Images of any size and shape become one square with the same pixels."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    processor: Any = Gemma3ImageProcessorPil(**SETTINGS)
    oracle = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    resizing = GemmaResizing.model_validate(SETTINGS)

    found = resizing.cut(Image.fromarray(pixels))

    np.testing.assert_allclose(resizing.pixel_values(found.tiles), oracle, rtol=0, atol=1e-6)


def test_the_settings_of_both_kinds_of_layers_are_those_of_the_torch_class() -> None:
    """Layers with a window, its size and the rotary settings, in the form of published files and of new ones."""
    new = {"rope_parameters": SEPARATE_ROPE, "layer_types": LAYER_TYPES, "rope_scaling": None}
    old = {"rope_theta": 3000.0, "rope_local_base_freq": 200.0}
    for changes in (new, old, {"sliding_window_pattern": 6}):
        config = _config(text_config=changes)
        language, module = _language(config), build_module(family_of(config), config)
        assert language.local_attention
        text: Any = module.config.text_config  # type: ignore[union-attr]
        rope: Any = text.rope_parameters
        local = [layer for layer, kind in enumerate(text.layer_types) if kind == "sliding_attention"]
        assert list(language.local_attention.layers) == local
        assert language.local_attention.window == text.sliding_window
        assert language.local_attention.rope_theta == rope["sliding_attention"]["rope_theta"]
        assert language.rope_theta == rope["full_attention"]["rope_theta"]
        assert language.rope_divisor == rope["full_attention"]["factor"]


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("text_config", {"hidden_activation": "silu"}, "hidden_activation"),
        ("text_config", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("text_config", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"layer_types": LAYER_TYPES[:2]}, "3 layers but 2 `layer_types`"),
        ("text_config", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("mm_tokens_per_image", 5, "4x4 patches, which are not averaged to a square of 5 tokens"),
        ("mm_tokens_per_image", 9, "4x4 patches, which are not averaged to a square of 9 tokens"),
    ],
)
def test_other_functions_are_rejected(key: str, changes: Any, message: str) -> None:
    """torch would compute another function than the exported files; the key is named."""
    with pytest.raises(CheckpointError, match=message):
        _language(_config(**{key: changes}))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config.json", {"size": {"height": 28, "width": 56}}, "`image_size` is 56 in config.json but 28"),
        ("preprocessor_config.json", {"do_pan_and_scan": True}, "`do_pan_and_scan` is enabled, which is not supported"),
        ("processor_config.json", {"image_seq_length": 16}, "`mm_tokens_per_image` is 4 in config.json but 16"),
    ],
)
def test_files_that_contradict_each_other_are_rejected(
    file: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The size of an image and the number of its tokens are in several files; crops of images are not supported."""
    path = build_family("gemma-3", tmp_path)
    if not (path / file).exists():
        (path / file).write_text("{}")
    edit_json(path / file, **changes)

    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path).family.open_processor(path)


def test_normalized_outputs_have_no_reader_of_the_stream() -> None:
    """Outputs of attention and MLP are normalized before they are added, so their drift is not that of the stream."""
    family = family_of(GEMMA_3.config)
    names = {spec.name for spec in family.tensor_specs(family.parse_architecture(GEMMA_3.config))}

    assert stream_reader("language.layers.0.attention.o", names) is None
    assert stream_reader("language.layers.0.mlp.down", names) is None
    assert stream_reader("vision.layers.0.attention.o", names) == "vision.layers.0.norm2"


def _config(**changes: Any) -> dict[str, Any]:
    """Return the tiny configuration with changed keys, also of its inner objects."""
    config = {key: value for key, value in GEMMA_3.config.items() if not key.endswith("_index")}
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config


def _language(config: dict[str, Any]) -> Any:
    return family_of(config).parse_architecture(config).language


@pytest.mark.parametrize("value", [None, False])
def test_pan_and_scan_is_disabled_in_published_files(value: object, tmp_path: Path) -> None:
    """An image has one square without the crops of transformers, which makes them only if they are enabled."""
    path = build_family("gemma-3", tmp_path)
    edit_json(path / "preprocessor_config.json", do_pan_and_scan=value, pan_and_scan_min_ratio_to_activate=1.2)

    assert Gemma3ImageProcessorPil().do_pan_and_scan is None
    assert Checkpoint.open(path).family.open_processor(path)
