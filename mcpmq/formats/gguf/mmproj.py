"""The file of what sees: vision tower and resampler, as llama.cpp's multimodal part takes them."""

from collections.abc import Mapping
from typing import Any

from gguf import GGMLQuantizationType, GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.formats.declared import Declared
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.json_file import read_json

COMPONENTS = {"vision", "projector"}
VERSIONS = {"minicpm-v-2.6": 3}  # llama.cpp's number of a MiniCPM-V: how it cuts images and what it puts around slices
GRID = 70  # side of the table of position embeddings that llama.cpp assumes
UNREAD_TABLE = "resampler.pos_embed_k"


def unread_slot(quantized: Declared) -> Slot:
    """llama.cpp asks for a table of positions that it never reads: one row of it is enough."""
    return Slot(UNREAD_TABLE, None, (1, quantized.architecture.language.hidden), GGMLQuantizationType.F32)


def add_metadata(writer: GGUFWriter, quantized: Declared, ffn: int) -> None:
    """Sizes of the vision tower and the resampler; `ffn` is the width in the file.

    Raises:
        FormatError: llama.cpp does not know the family, or assumes another table of positions.
    """
    shape, family = quantized.architecture.vision, quantized.artifact.manifest.family
    if family not in VERSIONS:
        raise FormatError(f"llama.cpp has no name for `{family}`", f"it can run: {', '.join(VERSIONS)}")
    if shape.grid != GRID:
        raise FormatError(f"the vision tower has {shape.grid} positions a side, llama.cpp assumes {GRID}")
    preprocessor = read_json(quantized.path / "preprocessor_config.json")
    _refuse_other_slices(preprocessor, shape.slice_side)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "resampler")
    writer.add_int32("clip.minicpmv_version", VERSIONS[family])
    writer.add_uint32("clip.minicpmv_query_num", shape.queries)
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", shape.slice_side)
    writer.add_uint32("clip.vision.patch_size", shape.patch)
    writer.add_uint32("clip.vision.embedding_length", shape.hidden)
    writer.add_uint32("clip.vision.feed_forward_length", ffn)
    writer.add_uint32("clip.vision.projection_dim", 0)
    writer.add_uint32("clip.vision.block_count", shape.layers)
    writer.add_uint32("clip.vision.attention.head_count", shape.heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", shape.norm_epsilon)
    for key in ("mean", "std"):
        writer.add_array(f"clip.vision.image_{key}", _three_numbers(preprocessor, f"norm_{key}"))
    if ffn != shape.ffn:
        writer.add_uint32("mcpmq.vision.feed_forward_length", shape.ffn)  # before zeros widened it


def _refuse_other_slices(preprocessor: Mapping[str, Any], slice_side: int) -> None:
    resolution = preprocessor.get("scale_resolution", slice_side)
    if resolution != slice_side:
        raise FormatError(
            f"preprocessor_config.json cuts slices of {resolution} pixels, config.json says {slice_side}",
            "compare both with the published ones",
        )


def _three_numbers(preprocessor: Mapping[str, Any], key: str) -> list[float]:
    values = preprocessor.get(key, [0.5] * 3)
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        raise FormatError(f"`{key}` of `preprocessor_config.json` is not three numbers")
    return [float(value) for value in values]
