"""SigLIP and a resampler in llama.cpp's multimodal part: names, sizes, and what it refuses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf import GGMLQuantizationType, GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.formats.gguf import position_tables
from mcpmq.formats.gguf.names import Names
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.formats.gguf.vision_tower import Tower
from mcpmq.formats.model_view import Declared

GRID = 70  # side of the table of position embeddings that llama.cpp assumes
UNREAD_TABLE = "resampler.pos_embed_k"
SIGLIP_LAYER = {
    "norm1": "ln1",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_out",
    "norm2": "ln2",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
NAMES = Names(
    whole={
        "vision.patch_embedding": "v.patch_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.post_norm": "v.post_ln",
        "projector.query": "resampler.query",
        "projector.kv": "resampler.kv",
        "projector.norm_q": "resampler.ln_q",
        "projector.norm_kv": "resampler.ln_kv",
        "projector.norm_post": "resampler.ln_post",
        "projector.attention.qkv": ("resampler.attn.q", "resampler.attn.k", "resampler.attn.v"),
        "projector.attention.o": "resampler.attn.out",
        "projector.out": "resampler.proj",
    },
    layers={"vision": ("v.blk", SIGLIP_LAYER)},
)


def _unread_slots(quantized: Declared) -> list[Slot]:
    """llama.cpp asks for a table of positions that it never reads: one row of it is enough."""
    return [Slot(UNREAD_TABLE, None, (1, quantized.architecture.language.hidden), GGMLQuantizationType.F32)]


def _in_one_row(quantized: Declared, slot: Slot) -> Slot:
    """Where patches count in one long row, the rows of the table stand where llama.cpp looks in two dimensions."""
    shape = quantized.architecture.sees
    if not shape.one_row or slot.source != "vision.position_embedding":
        return slot
    rows = position_tables.rows_along_one(GRID, shape.slice_side // shape.patch)
    return replace(slot, rows=rows, reason="positions along one row stand at llama.cpp's places in two dimensions")


def _add_metadata(writer: GGUFWriter, quantized: Declared, preprocessor: Mapping[str, Any]) -> None:
    """What only this kind of tower has.

    Raises:
        FormatError: llama.cpp assumes another table of positions, or other slices.
    """
    shape = quantized.architecture.sees
    if shape.grid != GRID:
        raise FormatError(f"the vision tower has {shape.grid} positions a side, llama.cpp assumes {GRID}")
    add_slices(writer, quantized, preprocessor)


def add_slices(writer: GGUFWriter, quantized: Declared, preprocessor: Mapping[str, Any]) -> None:
    """How images are cut, and what a slice becomes.

    Raises:
        FormatError: slices have another size than the model was made for.
    """
    shape = quantized.architecture.sees
    resolution = preprocessor.get("scale_resolution", shape.slice_side)
    if resolution != shape.slice_side:
        raise FormatError(
            f"preprocessor_config.json cuts slices of {resolution} pixels, config.json says {shape.slice_side}",
            "compare both with the published ones",
        )
    writer.add_int32("clip.minicpmv_version", family_named(quantized.artifact.manifest.family).llama_cpp_version)
    writer.add_uint32("clip.minicpmv_query_num", shape.queries)
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", shape.slice_side)
    writer.add_uint32("clip.vision.projection_dim", 0)


SIGLIP_RESAMPLER = Tower(
    projector="resampler",
    names=NAMES,
    tokens=("<image>", "</image>", "<slice>", "</slice>", "\n"),
    channels="norm_{}",
    add_metadata=_add_metadata,
    unread_slots=_unread_slots,
    computed=_in_one_row,
)
