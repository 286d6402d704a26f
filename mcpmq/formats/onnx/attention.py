"""Attention layers in a decoder graph: rotary position embedding, projections and GroupQueryAttention."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats.onnx import latent_attention
from mcpmq.formats.onnx.graph import CONTRIB_DOMAIN, Graph
from mcpmq.formats.onnx.masks import attention_masks
from mcpmq.formats.onnx.weight_emitter import WeightEmitter

if TYPE_CHECKING:
    import torch

FLOAT, INT64, INT32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
KeysValues = tuple[ir.Value, ir.Value]


@dataclass(frozen=True, slots=True)
class RotaryPositions:
    """Positions of the tokens of one call, shared by all layers."""

    table_rows: ir.Value  # int64 [batch, sequence]: row of each token in the two tables
    cosine: ir.Value  # float32 [batch * sequence, rotary_dim / 2]
    sine: ir.Value
    last_token: ir.Value  # int32 [batch]: index of the last attended token
    total_length: ir.Value  # int32 scalar: tokens in the KV cache after this call
    mask: ir.Value | None = None  # bool [batch, 1, sequence, total]; None for a causal mask


def rotary_positions(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, position_ids: ir.Value, mask: ir.Value
) -> RotaryPositions:
    """Emit the angles of the tokens of this call, one row per token, so that no table limits the context length.

    With local attention a row has the angles of other layers, then those of layers with a window.
    """
    width = (2 if shape.local_attention else 1) * shape.rotary_dim // 2
    frequencies = weights.constant(lambda: inverse_frequencies(shape), width)
    ids = graph.node("Cast", _ids_by_frequency(graph, shape, position_ids), to=FLOAT)
    angles = graph.node("Reshape", graph.node("Mul", ids, frequencies), graph.constant([-1, width]))
    axes = graph.node("Shape", position_ids, start=-2)
    count = graph.node("ReduceProd", axes, keepdims=0)
    lengths = graph.node("ReduceSum", mask, graph.constant([1]), keepdims=0)
    return RotaryPositions(
        table_rows=graph.node("Reshape", graph.node("Range", graph.constant(0), count, graph.constant(1)), axes),
        cosine=graph.node("Cos", angles),
        sine=graph.node("Sin", angles),
        last_token=graph.node("Cast", graph.node("Sub", lengths, graph.constant(1)), to=INT32),
        total_length=graph.node("Cast", graph.axis_length(mask, 1), to=INT32),
    )


def positions_by_layer(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, position_ids: ir.Value, mask: ir.Value
) -> list[RotaryPositions]:
    """Emit the positions of every layer: the same for all, or two kinds with local attention."""
    common = rotary_positions(graph, weights, shape, position_ids, mask)
    if shape.local_attention is None:
        return [common] * shape.num_layers
    local = shape.local_attention
    masks = attention_masks(graph, local, position_ids, mask)
    cosines, sines = (
        graph.nodes("Split", table, outputs=2, axis=-1, num_outputs=2) for table in (common.cosine, common.sine)
    )
    unlimited = replace(common, cosine=cosines[0], sine=sines[0], mask=masks.everywhere)
    windowed = replace(common, cosine=cosines[1], sine=sines[1], mask=masks.within_window)
    return [windowed if shape.is_local(layer) else unlimited for layer in range(shape.num_layers)]


def _ids_by_frequency(graph: Graph, shape: LanguageShape, position_ids: ir.Value) -> ir.Value:
    """Emit the position id of every frequency, [batch, sequence, frequencies]; without M-RoPE [batch, sequence, 1]."""
    if not shape.mrope_sections:
        return graph.node("Unsqueeze", position_ids, graph.constant([-1]))
    axes = np.repeat(np.arange(len(shape.mrope_sections)), shape.mrope_sections)
    if shape.mrope_interleaved:  # every third frequency is a row's or a column's, the others are of time
        axes[:] = 0
        for axis in (1, 2):
            axes[axis : 3 * shape.mrope_sections[axis] : 3] = axis
    return graph.node("Transpose", graph.node("Gather", position_ids, graph.constant(axes), axis=0), perm=[1, 2, 0])


def inverse_frequencies(shape: LanguageShape) -> "torch.Tensor":
    """Return the radians per position, float32 [rotary_dim / 2], with the rounding of transformers.

    With local attention those of layers with a window follow: float32 [rotary_dim].
    """
    import torch  # a forecast emits this graph without it

    exponents = torch.arange(0, shape.rotary_dim, 2, dtype=torch.int64).float() / shape.rotary_dim
    factors = torch.tensor(shape.rope_short_factors) if shape.rope_short_factors else 1.0
    common = 1.0 / (factors * shape.rope_theta**exponents) / shape.rope_divisor
    if shape.local_attention is None:
        return common
    return torch.cat((common, 1.0 / shape.local_attention.rope_theta**exponents))


def attend(
    graph: Graph,
    weights: WeightEmitter,
    shape: LanguageShape,
    name: str,
    value: ir.Value,
    positions: RotaryPositions,
    past: KeysValues,
) -> tuple[ir.Value, KeysValues]:
    """Emit normed hidden states [batch, sequence, hidden] -> the output of the layer and the updated KV cache."""
    query, key, content, gate = _project(graph, weights, shape, name, value, positions)
    emit = _masked_attention if positions.mask else _causal_attention
    attended, present_keys, present_values = emit(graph, shape, (query, key, content), positions, past)
    if shape.latent_attention:
        attended = latent_attention.remove_value_padding(graph, shape, shape.latent_attention, attended)
    if gate:
        attended = graph.node("Mul", attended, graph.node("Sigmoid", gate))
    return weights.linear(attended, f"{name}.o"), (present_keys, present_values)


def _causal_attention(
    graph: Graph,
    shape: LanguageShape,
    projected: tuple[ir.Value, ir.Value, ir.Value],
    positions: RotaryPositions,
    past: KeysValues,
) -> tuple[ir.Value, ...]:
    return graph.nodes(
        "GroupQueryAttention",
        *(*projected, *past, positions.last_token, positions.total_length),
        outputs=3,
        domain=CONTRIB_DOMAIN,
        scale=shape.score_scale,
        num_heads=shape.num_heads,
        kv_num_heads=shape.num_kv_heads,
    )


def _masked_attention(
    graph: Graph,
    shape: LanguageShape,
    projected: tuple[ir.Value, ir.Value, ir.Value],
    positions: RotaryPositions,
    past: KeysValues,
) -> tuple[ir.Value, ...]:
    return graph.nodes(
        "Attention",
        *(*projected, positions.mask, *past),
        outputs=3,
        scale=shape.score_scale,
        q_num_heads=shape.num_heads,
        kv_num_heads=shape.num_kv_heads,
    )


def norm_scale(graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str) -> ir.Value:
    """Emit the scale of an RMS norm; some models store its offset from 1."""
    weight = weights.vector(name)
    return graph.node("Add", weight, graph.constant(1, np.float32)) if shape.offset_norms else weight


def _project(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, value: ir.Value, positions: RotaryPositions
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
    """Emit rotated queries and keys, values, and the gate of the heads in models that have one."""
    rotate = partial(_rotate, graph, shape, positions)
    if shape.latent_attention:
        query = latent_attention.project_queries(graph, weights, shape, name, value, rotate)
        return query, *latent_attention.project_keys_values(graph, weights, shape, name, value, rotate), None
    query, key, content = (weights.linear(value, f"{name}.{part}") for part in "qkv")
    gate = None
    if shape.gated_attention:
        query, gate = _split_gate(graph, shape, query)
    if shape.qk_norm:
        query = _norm_heads(graph, weights, shape, f"{name}.norm_q", query)
        key = _norm_heads(graph, weights, shape, f"{name}.norm_k", key)
    return rotate(query, shape.num_heads), rotate(key, shape.num_kv_heads), content, gate


def _split_gate(graph: Graph, shape: LanguageShape, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Split queries and gates, which alternate by head."""
    heads = graph.node("Reshape", value, graph.constant([0, 0, shape.num_heads, 2 * shape.head_dim]))
    query, gate = graph.nodes("Split", heads, outputs=2, axis=-1, num_outputs=2)
    flat = graph.constant([0, 0, -1])
    return graph.node("Reshape", query, flat), graph.node("Reshape", gate, flat)


def _norm_heads(graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, value: ir.Value) -> ir.Value:
    """Normalize every head of [batch, sequence, heads * head_dim]."""
    heads = graph.node("Reshape", value, graph.constant([0, 0, -1, shape.head_dim]))
    scale = norm_scale(graph, weights, shape, name)
    normed = graph.node("RMSNormalization", heads, scale, axis=-1, epsilon=shape.norm_epsilon)
    return graph.node("Reshape", normed, graph.constant([0, 0, -1]))


def _rotate(graph: Graph, shape: LanguageShape, positions: RotaryPositions, value: ir.Value, heads: int) -> ir.Value:
    """Rotate values [batch, sequence, heads * width]; latent attention passes the rotary part of each head alone."""
    tables = positions.table_rows, positions.cosine, positions.sine
    rotary_dim = 0 if shape.latent_attention else shape.partial_rotary_dim  # 0: all of the width
    attributes = {"num_heads": heads, "interleaved": 0, "rotary_embedding_dim": rotary_dim}
    return graph.contrib_node("RotaryEmbedding", value, *tables, **attributes)
