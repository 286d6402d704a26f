"""The file of what sees: vision tower and connector, as llama.cpp's multimodal part takes them."""

from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families.family import VisionKind
from mcpmq.formats.gguf import merger, qwenvl, resampler, resampler_2_0
from mcpmq.formats.gguf.vision_tower import Tower
from mcpmq.formats.model_view import Declared
from mcpmq.system.json_file import read_json

COMPONENTS = {"vision", "projector"}


TOWERS: dict[VisionKind, Tower] = {
    "siglip-resampler": resampler.SIGLIP_RESAMPLER,
    "timm-resampler": resampler_2_0.TIMM_RESAMPLER,
    "siglip-merger": merger.SIGLIP_MERGER,
    "qwen2-vl": qwenvl.QWEN2_VL,
    "qwen2.5-vl": qwenvl.QWEN2_5_VL,
    "qwen3-vl": qwenvl.QWEN3_VL,
}


def tower_of(quantized: Declared) -> Tower:
    """The room of a model's kind of tower."""
    return TOWERS[quantized.architecture.sees.kind]


def add_metadata(writer: GGUFWriter, quantized: Declared, ffn: int) -> None:
    """Sizes of the vision tower and the connector; `ffn` is the width in the file.

    Raises:
        FormatError: llama.cpp assumes something else.
    """
    shape, tower = quantized.architecture.sees, tower_of(quantized)
    files = [quantized.path / name for name in tower.preprocessor]
    preprocessor = read_json(next((file for file in files if file.is_file()), files[0]))
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", tower.projector)
    tower.add_metadata(writer, quantized, preprocessor)
    writer.add_uint32("clip.vision.patch_size", shape.patch)
    writer.add_uint32("clip.vision.embedding_length", shape.hidden)
    writer.add_uint32("clip.vision.feed_forward_length", ffn)
    writer.add_uint32("clip.vision.block_count", shape.layers)
    writer.add_uint32("clip.vision.attention.head_count", shape.heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", shape.norm_epsilon)
    for key in ("mean", "std"):
        writer.add_array(f"clip.vision.image_{key}", _three_numbers(preprocessor, tower.channels.format(key)))
    if ffn != shape.ffn:
        writer.add_uint32("mcpmq.vision.feed_forward_length", shape.ffn)  # before zeros widened it


def _three_numbers(preprocessor: Mapping[str, Any], key: str) -> list[float]:
    values = preprocessor.get(key, [0.5] * 3)
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise FormatError(f"`{key}` of `preprocessor_config.json` is not three numbers")
    return [float(value) for value in values]
