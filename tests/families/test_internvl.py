"""Tiles, tokens and tensors of InternVL, compared with transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError
from mcpmq.execution.torch_model import build_module
from mcpmq.families import family_of
from mcpmq.families.internvl_inputs import InternVlTiling
from mcpmq.families.residual import stream_reader
from tests.checkpoint_tools import build_family, edit_json
from tests.tiny_families import INTERNVL

SETTINGS: dict[str, Any] = {"size": {"height": 24, "width": 24}, "image_mean": [0.4, 0.5, 0.6]}


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    least=st.integers(1, 4),
    most=st.integers(1, 12),
    crops=st.booleans(),
)
def test_tiles_are_those_of_transformers(width: int, height: int, least: int, most: int, crops: bool) -> None:
    """Images of any size and shape have the same tiles and thumbnail, for any limits."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    given = {**SETTINGS, "crop_to_patches": crops, "min_patches": min(least, most), "max_patches": most}
    processor: Any = GotOcr2ImageProcessorPil(**given)
    oracle = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
    tiling = InternVlTiling.model_validate(given)

    found = tiling.cut(Image.fromarray(pixels))

    np.testing.assert_allclose(tiling.pixel_values(found.tiles), oracle, rtol=0, atol=1e-6)
    assert tiling.image_text(found.grid, ["x"] * len(found.tiles)) == f"<img>{'x' * len(oracle)}</img>"


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False, None])
def test_both_language_models_have_the_parameters_of_the_torch_class(kind: str, tied: bool | None) -> None:
    """InternVL3 has Qwen2, with biases, and 3.5 has Qwen3, with QK norms; the head is tied by default."""
    config = {
        key: value for key, value in INTERNVL.config.items() if key not in ("image_token_id", "tie_word_embeddings")
    }
    config["text_config"] = {**config["text_config"], "model_type": kind}
    config |= {} if tied is None else {"tie_word_embeddings": tied}
    family = family_of(config)

    specs = family.tensor_specs(family.parse_architecture(config))

    module: Any = build_module(family, config)
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert {name: spec.shape for spec in specs for name in spec.parameter_names} == expected
    assert family.parse_architecture(config).language.tied_embeddings == module.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("vision_config", {"norm_type": "rms_norm"}, "norm_type"),
        ("vision_config", {"use_qk_norm": True}, "use_qk_norm"),
        ("vision_config", {"attention_bias": False}, "attention_bias"),
        ("vision_config", {"image_size": [56, 28]}, "image_size"),
        ("vision_config", {"image_size": 42}, "tiles of 3x3 patches, no multiple of 2"),
        ("text_config", {"model_type": "internlm2"}, "model_type"),
        ("vision_feature_layer", -2, "vision_feature_layer"),
    ],
)
def test_other_functions_are_rejected(key: str, changes: Any, message: str) -> None:
    """The vision encoder of the largest models and other language models are not supported; the key is named."""
    config = dict(INTERNVL.config)
    config[key] = {**config[key], **changes} if isinstance(changes, dict) else changes

    with pytest.raises(CheckpointError, match=message):
        family_of(config).parse_architecture(config)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("preprocessor_config.json", {"size": {"height": 56, "width": 28}}, "`image_size` is 56 in config.json but 28"),
        ("processor_config.json", {"image_seq_length": 64}, "`image_seq_length` is 4 in config.json but 64"),
    ],
)
def test_files_that_contradict_each_other_are_rejected(
    file: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The size of a tile and the number of its tokens are in several files."""
    path = build_family("internvl", tmp_path)
    if not (path / file).exists():
        (path / file).write_text("{}")
    edit_json(path / file, **changes)

    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(path).family.open_processor(path)


def test_scaled_outputs_have_no_reader_of_the_stream() -> None:
    """LayerScale multiplies the outputs before they are added, so their drift is not that of the stream."""
    names = {spec.name for spec in family_of(INTERNVL.config).tensor_specs(_architecture())}

    assert stream_reader("vision.layers.0.attention.o", names) is None
    assert stream_reader("vision.layers.0.mlp.down", names) is None
    assert stream_reader("language.layers.0.attention.o", names) == "language.layers.0.post_attention_norm"


def _architecture() -> Any:
    return family_of(INTERNVL.config).parse_architecture(INTERNVL.config)
