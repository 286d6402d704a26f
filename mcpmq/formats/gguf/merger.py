"""SigLIP with two mergers, of MiniCPM-V 4.6, in llama.cpp's multimodal part: names, sizes, and what it refuses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.formats.gguf.names import Names
from mcpmq.formats.gguf.resampler import GRID, SIGLIP_LAYER, SIGLIP_RESAMPLER
from mcpmq.formats.model_view import Declared

NAMES = Names(
    whole={
        "vision.patch_embedding": "v.patch_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.post_norm": "v.post_ln",
        "vision.merger.norm1": "v.vit_merger.ln1",
        "vision.merger.attention.q": "v.vit_merger.attn_q",
        "vision.merger.attention.k": "v.vit_merger.attn_k",
        "vision.merger.attention.v": "v.vit_merger.attn_v",
        "vision.merger.attention.o": "v.vit_merger.attn_out",
        "vision.merger.norm2": "v.vit_merger.ds_ln",
        "vision.merger.up": "v.vit_merger.ds_ffn_up",
        "vision.merger.down": "v.vit_merger.ds_ffn_down",
        "projector.norm": "mm.input_norm",
        "projector.up": "mm.up",
        "projector.down": "mm.down",
    },
    layers={"vision": ("v.blk", SIGLIP_LAYER)},
)


def _add_metadata(writer: GGUFWriter, quantized: Declared, preprocessor: Mapping[str, Any]) -> None:
    shape = quantized.architecture.sees
    if shape.grid != GRID:
        raise FormatError(f"the vision tower has {shape.grid} positions a side, llama.cpp assumes {GRID}")
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", int(preprocessor.get("scale_resolution", 448)))
    writer.add_uint32("clip.vision.projection_dim", quantized.architecture.language.hidden)
    writer.add_uint32("clip.vision.projector.scale_factor", shape.merge)
    writer.add_array("clip.vision.wa_layer_indexes", [shape.merger_layer])


SIGLIP_MERGER = replace(
    SIGLIP_RESAMPLER,
    projector="minicpmv4_6",
    names=NAMES,
    channels="image_{}",
    add_metadata=_add_metadata,
    unread_slots=lambda _: [],
)
