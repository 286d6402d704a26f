"""The tower of MiniCPM-V 2.0 in llama.cpp's multimodal part, as if it were of 2.5: what differs goes into values.

llama.cpp looks positions of patches up in a table of its own size, gives queries no positions, and scales the
embeddings of images, as it does those of tokens. No code of a quantized weight changes: all of this is in floats.
"""

from dataclasses import replace
from functools import partial

from mcpmq.formats.gguf import position_tables
from mcpmq.formats.gguf.resampler import GRID, NAMES, SIGLIP_LAYER, SIGLIP_RESAMPLER, UNREAD_TABLE, add_slices
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.formats.model_view import Declared

QUERY, WEIGHT, BIAS, PLACES = (
    "projector.query",
    "projector.norm_q",
    "projector.norm_q.bias",
    "projector.query_position",
)
IN_QUERIES = "queries and their norm hold the positions of queries, which llama.cpp does not add"


def _computed(quantized: Declared, slot: Slot) -> Slot:
    shape, scale = quantized.architecture.sees, quantized.architecture.language.embedding_scale
    if slot.source == "vision.position_embedding":
        table = partial(position_tables.table_for, cells=GRID, side=shape.slice_side // shape.patch)
        reason = f"{shape.grid}x{shape.grid} positions resized to the {GRID}x{GRID} that llama.cpp assumes"
        return replace(slot, shape=(GRID**2, shape.hidden), computed=table, reason=reason)
    if slot.source == QUERY:
        return replace(slot, computed=position_tables.placed_query, others=(WEIGHT, BIAS, PLACES), reason=IN_QUERIES)
    if slot.source == WEIGHT:
        return replace(slot, computed=position_tables.placed_norm, others=(QUERY, BIAS, PLACES), reason=IN_QUERIES)
    if slot.source == BIAS:
        return replace(slot, computed=position_tables.placed_bias, others=(QUERY, WEIGHT, PLACES), reason=IN_QUERIES)
    if slot.source in ("projector.norm_post", "projector.norm_post.bias"):
        reason = f"divided by {scale:g}, by which llama.cpp multiplies embeddings of images too"
        return replace(slot, computed=lambda values: values.double() / scale, reason=reason)
    return slot


TIMM_RESAMPLER = replace(
    SIGLIP_RESAMPLER,
    names=replace(
        NAMES,
        whole={**NAMES.whole, PLACES: UNREAD_TABLE},
        layers={"vision": ("v.blk", {**SIGLIP_LAYER, "attention.qkv": ("attn_q", "attn_k", "attn_v")})},
    ),
    add_metadata=add_slices,
    unread_slots=lambda _: [],
    computed=_computed,
    preprocessor=("preprocessor_config.json", "config.json"),
)
