"""The language model's graph: prefill and cached decoding in one, names as transformers.js expects them."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture, LanguageShape
from mcpmq.formats.onnx import latent_attention, linear_attention
from mcpmq.formats.onnx.graph import CONTRIBUTED, Graph
from mcpmq.formats.onnx.weight_source import Weights
from mcpmq.system.progress import Progress

if TYPE_CHECKING:
    import torch

Kept = tuple[ir.Value, ir.Value]  # of a layer, from call to call: keys and values, or states
FLOAT, INT64, INT32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32


@dataclass(frozen=True, slots=True)
class Positions:
    """What attention must know about the tokens of a call; the same in every layer."""

    rows: ir.Value  # int64 [batch, sequence]: which row of the two tables is a token's
    cosine: ir.Value  # float32 [batch * sequence, turned width / 2]
    sine: ir.Value
    last: ir.Value  # int32 [batch]: index of the last token that attention may see
    total: ir.Value  # int32 scalar: tokens in the cache after this call


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream; what the last sublayer adds to it is added by the next norm."""

    residual: ir.Value
    addend: ir.Value | None = None


def emit(graph: Graph, weights: Weights, architecture: Architecture, progress: Progress) -> None:
    """`inputs_embeds` float32 [batch, sequence, hidden] (behind them, layer by layer, what is added behind the first
    layers: zeros where there is no image), `attention_mask` and `position_ids` int64 (three of each, by
    time, row and column, where the model has M-RoPE), the cache of past keys and values and `num_logits_to_keep` (0:
    all) -> `logits` of the last tokens, and the cache grown by this call.
    Shorter sequences of a batch are padded on the right.
    """
    shape = architecture.language
    embeddings, *stacked = _embeddings(graph, architecture)
    mask = graph.input("attention_mask", INT64, ["batch_size", "total_sequence_length"])
    sections: list[int | str] = [len(shape.rope_sections)] if shape.rope_sections else []
    position_ids = graph.input("position_ids", INT64, [*sections, "batch_size", "sequence_length"])
    pasts = [_past(graph, shape, layer) for layer in range(shape.layers)]
    kept = graph.input("num_logits_to_keep", INT64, [])
    positions = _positions(graph, weights, shape, position_ids, mask)
    stream, presents = Stream(embeddings), []
    for layer in progress(range(shape.layers), "writing the language model"):
        stream, present = _layer(graph, weights, shape, layer, stream, positions, pasts[layer])
        presents.append(present)
        if layer < len(stacked):
            stream = Stream(stream.residual, graph.node("Add", stream.addend, stacked[layer]))
    normed, _ = _norm(graph, weights, shape, "language.norm", stream)
    if shape.head_divisor != 1:
        normed = graph.node("Div", normed, graph.constant(shape.head_divisor, np.float32))
    logits = weights.linear(_last_tokens(graph, normed, kept), "embedding" if shape.tied_head else "head")
    graph.output(logits, "logits", FLOAT, ["batch_size", "num_logits", shape.vocabulary])
    for layer, present in enumerate(presents):
        _present(graph, shape, layer, present)


def _embeddings(graph: Graph, architecture: Architecture) -> tuple[ir.Value, ...]:
    """What the first layer takes, and what is added behind each of the first layers. In one input, as transformers.js
    puts the features of an image in the places of its tokens and knows no other way into the decoder."""
    count, hidden = 1 + architecture.deepstack, architecture.language.hidden
    value = graph.input("inputs_embeds", FLOAT, ["batch_size", "sequence_length", count * hidden])
    return graph.nodes("Split", value, outputs=count, axis=-1, num_outputs=count) if count > 1 else (value,)


def _past(graph: Graph, shape: LanguageShape, layer: int) -> Kept:
    if shape.linear and shape.is_linear(layer):
        return linear_attention.state_inputs(graph, shape.linear, layer)
    return _cache_inputs(graph, shape, layer)


def _present(graph: Graph, shape: LanguageShape, layer: int, present: Kept) -> None:
    if shape.linear and shape.is_linear(layer):
        linear_attention.state_outputs(graph, shape.linear, layer, present)
    else:
        _cache_outputs(graph, shape, layer, present)


def _cache_inputs(graph: Graph, shape: LanguageShape, layer: int) -> tuple[ir.Value, ir.Value]:
    axes: list[int | str] = ["batch_size", shape.kv_heads, "past_sequence_length", shape.head_width]
    names = f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"
    return graph.input(names[0], FLOAT, axes), graph.input(names[1], FLOAT, axes)


def _cache_outputs(graph: Graph, shape: LanguageShape, layer: int, present: tuple[ir.Value, ir.Value]) -> None:
    axes: list[int | str] = ["batch_size", shape.kv_heads, "total_sequence_length", shape.head_width]
    for value, name in zip(present, ("key", "value"), strict=True):
        graph.output(value, f"present.{layer}.{name}", FLOAT, axes)


def _positions(
    graph: Graph, weights: Weights, shape: LanguageShape, position_ids: ir.Value, mask: ir.Value
) -> Positions:
    """Angles for the tokens of this call alone, one row a token, so that no table bounds the context."""
    frequencies = weights.constant(lambda: rotary_frequencies(shape), shape.turned_width // 2)
    ids = graph.node("Cast", _ids_by_frequency(graph, shape, position_ids), to=FLOAT)
    angles = graph.node("Reshape", graph.node("Mul", ids, frequencies), graph.constant([-1, shape.turned_width // 2]))
    axes = graph.node("Shape", position_ids, start=-2)
    count = graph.node("ReduceProd", axes, keepdims=0)
    seen = graph.node("ReduceSum", mask, graph.constant([1]), keepdims=0)
    return Positions(
        rows=graph.node("Reshape", graph.node("Range", graph.constant(0), count, graph.constant(1)), axes),
        cosine=graph.node("Cos", angles),
        sine=graph.node("Sin", angles),
        last=graph.node("Cast", graph.node("Sub", seen, graph.constant(1)), to=INT32),
        total=graph.node("Cast", graph.size(mask, 1), to=INT32),
    )


def _ids_by_frequency(graph: Graph, shape: LanguageShape, position_ids: ir.Value) -> ir.Value:
    """The position that each frequency turns by: [batch, sequence, frequencies], or 1 where all turn by the same."""
    if not shape.rope_sections:
        return graph.node("Unsqueeze", position_ids, graph.constant([-1]))
    axes = np.repeat(np.arange(len(shape.rope_sections)), shape.rope_sections)
    if shape.rope_interleaved:  # time has what rows and columns leave it
        axes[:] = 0
        for axis in (1, 2):
            axes[axis : 3 * shape.rope_sections[axis] : 3] = axis
    return graph.node("Transpose", graph.node("Gather", position_ids, graph.constant(axes), axis=0), perm=[1, 2, 0])


def rotary_frequencies(shape: LanguageShape) -> "torch.Tensor":
    """Radians a position, float32 [turned width / 2], rounded as transformers rounds them."""
    import torch  # a forecast emits this graph without it

    exponents = torch.arange(0, shape.turned_width, 2, dtype=torch.int64).float() / shape.turned_width
    factors = torch.tensor(shape.rope_factors) if shape.rope_factors else 1.0
    return 1.0 / (factors * shape.rope_theta**exponents)


def _layer(
    graph: Graph,
    weights: Weights,
    shape: LanguageShape,
    layer: int,
    stream: Stream,
    positions: Positions,
    past: Kept,
) -> tuple[Stream, Kept]:
    name = f"language.layers.{layer}"
    normed, residual = _norm(graph, weights, shape, f"{name}.input_norm", stream)
    if shape.is_linear(layer):
        attended, present = linear_attention.attend(graph, weights, shape, f"{name}.linear", normed, past)
    else:
        attended, present = _attention(graph, weights, shape, f"{name}.attention", normed, positions, past)
    attended = _scaled(graph, shape, attended)
    normed, residual = _norm(graph, weights, shape, f"{name}.post_attention_norm", Stream(residual, attended))
    gate = weights.linear(normed, f"{name}.mlp.gate")
    activated = graph.node("Mul", gate, graph.node("Sigmoid", gate))
    product = graph.node("Mul", activated, weights.linear(normed, f"{name}.mlp.up"))
    return Stream(residual, _scaled(graph, shape, weights.linear(product, f"{name}.mlp.down"))), present


def _scaled(graph: Graph, shape: LanguageShape, value: ir.Value) -> ir.Value:
    """What a layer adds, by the model's scale."""
    if shape.residual_scale == 1:
        return value
    return graph.node("Mul", value, graph.constant(shape.residual_scale, np.float32))


def _norm(graph: Graph, weights: Weights, shape: LanguageShape, name: str, stream: Stream) -> tuple[ir.Value, ir.Value]:
    """The normed stream, and the stream itself with everything added."""
    scale = _scale(graph, weights, shape, name)
    if stream.addend is None:
        normed = graph.node("RMSNormalization", stream.residual, scale, axis=-1, epsilon=shape.norm_epsilon)
        return normed, stream.residual
    outputs = graph.nodes(
        "SkipSimplifiedLayerNormalization",
        stream.residual,
        stream.addend,
        scale,
        outputs=4,
        domain=CONTRIBUTED,
        epsilon=shape.norm_epsilon,
    )
    return outputs[0], outputs[3]


def _scale(graph: Graph, weights: Weights, shape: LanguageShape, name: str) -> ir.Value:
    """What a norm scales by."""
    weight = weights.vector(name)
    return graph.node("Add", weight, graph.constant(1, np.float32)) if shape.centred_norms else weight


def _attention(
    graph: Graph,
    weights: Weights,
    shape: LanguageShape,
    name: str,
    value: ir.Value,
    positions: Positions,
    past: Kept,
) -> tuple[ir.Value, Kept]:
    heads = {"num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
    query, key, content, gate = _projected(graph, weights, shape, name, value, positions)
    attended, keys, kept = graph.nodes(
        "GroupQueryAttention",
        query,
        key,
        content,
        *past,
        positions.last,
        positions.total,
        outputs=3,
        domain=CONTRIBUTED,
        scale=shape.head_width**-0.5,
        **heads,
    )
    if shape.latent:
        attended = latent_attention.without_filling(graph, shape, shape.latent, attended)
    if gate:
        attended = graph.node("Mul", attended, graph.node("Sigmoid", gate))
    return weights.linear(attended, f"{name}.o"), (keys, kept)


def _projected(
    graph: Graph, weights: Weights, shape: LanguageShape, name: str, value: ir.Value, positions: Positions
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
    """Queries and keys, turned, values, and what gates the heads where something does."""
    turn = partial(_rotated, graph, shape, positions)
    if shape.latent:
        query = latent_attention.queries(graph, weights, shape, name, value, turn)
        return query, *latent_attention.keys_and_values(graph, weights, shape, name, value, turn), None
    query, key, content = (weights.linear(value, f"{name}.{part}") for part in "qkv")
    gate = None
    if shape.gated_attention:
        query, gate = _gates(graph, shape, query)
    if shape.qk_norm:
        query = _normed_heads(graph, weights, shape, f"{name}.norm_q", query)
        key = _normed_heads(graph, weights, shape, f"{name}.norm_k", key)
    return turn(query, shape.heads), turn(key, shape.kv_heads), content, gate


def _gates(graph: Graph, shape: LanguageShape, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Queries and gates, which come by turns, a head of each."""
    heads = graph.node("Reshape", value, graph.constant([0, 0, shape.heads, 2 * shape.head_width]))
    query, gate = graph.nodes("Split", heads, outputs=2, axis=-1, num_outputs=2)
    flat = graph.constant([0, 0, -1])
    return graph.node("Reshape", query, flat), graph.node("Reshape", gate, flat)


def _normed_heads(graph: Graph, weights: Weights, shape: LanguageShape, name: str, value: ir.Value) -> ir.Value:
    """Every head of [batch, sequence, heads * head width] normed by itself."""
    split = graph.node("Reshape", value, graph.constant([0, 0, -1, shape.head_width]))
    scale = _scale(graph, weights, shape, name)
    normed = graph.node("RMSNormalization", split, scale, axis=-1, epsilon=shape.norm_epsilon)
    return graph.node("Reshape", normed, graph.constant([0, 0, -1]))


def _rotated(graph: Graph, shape: LanguageShape, positions: Positions, value: ir.Value, heads: int) -> ir.Value:
    """Values [batch, sequence, heads * width]; of latent attention just the part that is turned."""
    tables = positions.rows, positions.cosine, positions.sine
    settings = {"num_heads": heads, "interleaved": 0, "rotary_embedding_dim": 0 if shape.latent else shape.rope_width}
    return graph.contributed("RotaryEmbedding", value, *tables, **settings)


def _last_tokens(graph: Graph, value: ir.Value, count: ir.Value) -> ir.Value:
    """The last `count` tokens; 0 keeps all, since -0 is where a sequence starts."""
    start = graph.node("Reshape", graph.node("Neg", count), graph.constant([1]))
    return graph.node("Slice", value, start, graph.constant([2**31 - 1]), graph.constant([1]))
