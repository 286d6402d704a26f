"""The vision encoder of MiniCPM-V 2.0 in an mmproj file of the kind of 2.5, with converted values.

llama.cpp indexes patch positions in a 70x70 table, adds no positions to queries, and scales image embeddings like token
embeddings. Only floating-point tensors are converted; no code of a quantized weight changes.
"""

from dataclasses import replace
from functools import partial

from mcpmq.families.family import VisionShape
from mcpmq.formats.gguf import position_tables
from mcpmq.formats.gguf.resampler import (
    NAMES,
    POSITION_TABLE_SIDE,
    SIGLIP_LAYER_NAMES,
    SIGLIP_RESAMPLER,
    UNUSED_TABLE,
    add_slice_metadata,
)
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.model_view import ModelView

QUERY, QUERY_POSITION = "projector.query", "projector.query_position"
NORM_WEIGHT, NORM_BIAS = "projector.norm_q", "projector.norm_q.bias"
FOLDED_REASON = "queries and their norm contain the query positions, which llama.cpp does not add"
# Transform and further arguments of the tensors that contain the query positions.
FOLDED = {
    QUERY: (position_tables.fold_position_into_query, (NORM_WEIGHT, NORM_BIAS, QUERY_POSITION)),
    NORM_WEIGHT: (position_tables.fold_position_into_norm_weight, (QUERY, NORM_BIAS, QUERY_POSITION)),
    NORM_BIAS: (position_tables.fold_position_into_norm_bias, (QUERY, NORM_WEIGHT, QUERY_POSITION)),
}


def _transform(model: ModelView, tensor: GgufTensor) -> GgufTensor:
    if tensor.source == "vision.position_embedding":
        return _resampled(model.architecture.required_vision, tensor)
    if tensor.source in FOLDED:
        transform, sources = FOLDED[tensor.source]
        return replace(tensor, transform=transform, extra_sources=sources, reason=FOLDED_REASON)
    if tensor.source in ("projector.norm_post", "projector.norm_post.bias"):
        scale = model.architecture.language.embedding_scale
        reason = f"divided by the embedding scale {scale:g}, which llama.cpp also applies to image embeddings"
        return replace(tensor, transform=lambda values: values.double() / scale, reason=reason)
    return tensor


def _resampled(shape: VisionShape, tensor: GgufTensor) -> GgufTensor:
    side, grid = POSITION_TABLE_SIDE, shape.position_grid_size
    table = partial(
        position_tables.resample_position_table,
        table_side=side,
        slice_side=shape.slice_resolution // shape.patch_size,
    )
    reason = f"{grid}x{grid} positions are resampled to the {side}x{side} that llama.cpp requires"
    return replace(tensor, shape=(side**2, shape.hidden_size), transform=table, reason=reason)


TIMM_RESAMPLER = replace(
    SIGLIP_RESAMPLER,
    names=replace(
        NAMES,
        global_names={**NAMES.global_names, QUERY_POSITION: UNUSED_TABLE},
        layer_names={"vision": ("v.blk", {**SIGLIP_LAYER_NAMES, "attention.qkv": ("attn_q", "attn_k", "attn_v")})},
    ),
    add_metadata=add_slice_metadata,
    unused_tensors=lambda _: [],
    transform=_transform,
)
