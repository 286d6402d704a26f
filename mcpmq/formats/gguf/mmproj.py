"""Metadata of the mmproj file: vision encoder and projector."""

from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families.family import VisionKind
from mcpmq.formats.gguf import merger, qwenvl, resampler, resampler_2_0
from mcpmq.formats.gguf.vision_tower import VisionTower
from mcpmq.formats.model_view import ModelView
from mcpmq.system.json_file import read_json

COMPONENTS = {"vision", "projector"}
TOWERS: dict[VisionKind, VisionTower] = {
    "siglip-resampler": resampler.SIGLIP_RESAMPLER,
    "timm-resampler": resampler_2_0.TIMM_RESAMPLER,
    "siglip-merger": merger.SIGLIP_MERGER,
    "qwen2-vl": qwenvl.QWEN2_VL,
    "qwen2.5-vl": qwenvl.QWEN2_5_VL,
    "qwen3-vl": qwenvl.QWEN3_VL,
}


def tower_of(model: ModelView) -> VisionTower:
    """Return the description of a model's vision encoder and projector."""
    return TOWERS[model.architecture.required_vision.kind]


def add_metadata(writer: GGUFWriter, model: ModelView, intermediate_size: int) -> None:
    """Write the sizes of the vision encoder and the projector; `intermediate_size` is the padded one.

    Raises:
        FormatError: llama.cpp would compute a different function.
    """
    shape, tower = model.architecture.required_vision, tower_of(model)
    files = [model.path / name for name in tower.preprocessor_files]
    preprocessor = read_json(next((file for file in files if file.is_file()), files[0]))
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", tower.projector_type)
    tower.add_metadata(writer, model, preprocessor)
    writer.add_uint32("clip.vision.patch_size", shape.patch_size)
    writer.add_uint32("clip.vision.embedding_length", shape.hidden_size)
    writer.add_uint32("clip.vision.feed_forward_length", intermediate_size)
    writer.add_uint32("clip.vision.block_count", shape.num_layers)
    writer.add_uint32("clip.vision.attention.head_count", shape.num_heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", shape.norm_epsilon)
    for key in ("mean", "std"):
        writer.add_array(f"clip.vision.image_{key}", _three_numbers(preprocessor, tower.normalization_key.format(key)))
    if intermediate_size != shape.intermediate_size:
        writer.add_uint32("mcpmq.vision.feed_forward_length", shape.intermediate_size)  # before padding


def _three_numbers(preprocessor: Mapping[str, Any], key: str) -> list[float]:
    values = preprocessor.get(key, [0.5] * 3)
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise FormatError(f"`{key}` of `preprocessor_config.json` is not three numbers")
    return [float(value) for value in values]
