"""Emit the decoder graph: prefill and cached decoding in one graph, with the input names of transformers.js."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture
from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats.onnx import attention, linear_attention, short_convolution
from mcpmq.formats.onnx.attention import FLOAT, INT64, RotaryPositions, norm_scale
from mcpmq.formats.onnx.graph import CONTRIB_DOMAIN, Axes, Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress

# The KV cache of a layer, its states of linear attention, or its state of a convolution.
LayerState = tuple[ir.Value, ...]


@dataclass(frozen=True, slots=True)
class Residual:
    """The residual stream; the next norm adds the output of the last sublayer, in one fused operator."""

    value: ir.Value
    addend: ir.Value | None = None


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the decoder.

    Inputs: `inputs_embeds` float32 [batch, sequence, (1 + deepstack layers) * hidden], zeros in the deepstack part of
    text tokens; `attention_mask` int64; `position_ids` int64, three per token (time, row, column) with M-RoPE; the KV
    cache; `num_logits_to_keep` int64, 0 for all. Sequences of a batch are padded on the right.
    Outputs: `logits` of the last tokens, and the updated KV cache.
    """
    shape = architecture.language
    embeddings, *deepstack = _embeddings(graph, architecture)
    mask = graph.input("attention_mask", INT64, ["batch_size", "total_sequence_length"])
    sections: Axes = [len(shape.mrope_sections)] if shape.mrope_sections else []
    position_ids = graph.input("position_ids", INT64, [*sections, "batch_size", "sequence_length"])
    pasts = [_past_state(graph, shape, layer) for layer in range(shape.num_layers)]
    num_logits = graph.input("num_logits_to_keep", INT64, [])
    positions = attention.positions_by_layer(graph, weights, shape, position_ids, mask)
    stream, presents = Residual(embeddings), []
    for layer in progress(range(shape.num_layers), "writing the language model"):
        stream, present = _layer(graph, weights, shape, layer, stream, positions[layer], pasts[layer])
        presents.append(present)
        if layer < len(deepstack):
            stream = Residual(stream.value, graph.node("Add", stream.addend, deepstack[layer]))
    logits = _logits(graph, weights, shape, stream, num_logits)
    graph.output(logits, "logits", FLOAT, ["batch_size", "num_logits", shape.vocab_size])
    for layer, present in enumerate(presents):
        _present_state(graph, shape, layer, present)


def _embeddings(graph: Graph, architecture: Architecture) -> tuple[ir.Value, ...]:
    """Split `inputs_embeds` into embeddings and the deepstack features of the first layers.

    They share an input: transformers.js can insert image features only at the image tokens of `inputs_embeds`.
    """
    count, hidden_size = 1 + architecture.num_deepstack_layers, architecture.language.hidden_size
    value = graph.input("inputs_embeds", FLOAT, ["batch_size", "sequence_length", count * hidden_size])
    return graph.nodes("Split", value, outputs=count, axis=-1, num_outputs=count) if count > 1 else (value,)


def _past_state(graph: Graph, shape: LanguageShape, layer: int) -> LayerState:
    if shape.linear_attention and shape.is_linear_attention(layer):
        return linear_attention.state_inputs(graph, shape.linear_attention, layer)
    if shape.is_convolution(layer):
        return short_convolution.state_inputs(graph, shape, layer)
    axes: Axes = ["batch_size", shape.num_kv_heads, "past_sequence_length", shape.head_dim]
    names = f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"
    return graph.input(names[0], FLOAT, axes), graph.input(names[1], FLOAT, axes)


def _present_state(graph: Graph, shape: LanguageShape, layer: int, present: LayerState) -> None:
    if shape.linear_attention and shape.is_linear_attention(layer):
        linear_attention.state_outputs(graph, shape.linear_attention, layer, (present[0], present[1]))
        return
    if shape.is_convolution(layer):
        short_convolution.state_outputs(graph, shape, layer, present)
        return
    axes: Axes = ["batch_size", shape.num_kv_heads, "total_sequence_length", shape.head_dim]
    for value, name in zip(present, ("key", "value"), strict=True):
        graph.output(value, f"present.{layer}.{name}", FLOAT, axes)


def _layer(
    graph: Graph,
    weights: WeightEmitter,
    shape: LanguageShape,
    layer: int,
    stream: Residual,
    positions: RotaryPositions,
    past: LayerState,
) -> tuple[Residual, LayerState]:
    name = f"language.layers.{layer}"
    normed, residual = _norm(graph, weights, shape, f"{name}.input_norm", stream)
    present: LayerState
    if shape.is_linear_attention(layer):
        states = past[0], past[1]
        attended, present = linear_attention.attend(graph, weights, shape, f"{name}.linear", normed, states)
    elif shape.is_convolution(layer):
        attended, present = short_convolution.convolve(graph, weights, f"{name}.conv", normed, past)
    else:
        cache = past[0], past[1]
        attended, present = attention.attend(graph, weights, shape, f"{name}.attention", normed, positions, cache)
    attended = _output(graph, weights, shape, f"{name}.attention", attended)
    normed, residual = _norm(graph, weights, shape, f"{name}.post_attention_norm", Residual(residual, attended))
    activated = _activate(graph, shape, weights.linear(normed, f"{name}.mlp.gate"))
    product = graph.node("Mul", activated, weights.linear(normed, f"{name}.mlp.up"))
    output = _output(graph, weights, shape, f"{name}.mlp", weights.linear(product, f"{name}.mlp.down"))
    return Residual(residual, output), present


def _activate(graph: Graph, shape: LanguageShape, gate: ir.Value) -> ir.Value:
    if shape.activation == "gelu":
        return graph.node("Gelu", gate, approximate="tanh")
    return graph.node("Mul", gate, graph.node("Sigmoid", gate))


def _output(graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, value: ir.Value) -> ir.Value:
    """Emit the output of attention or of the MLP as it is added to the residual stream: normalized or scaled."""
    if shape.output_norms:
        scale = norm_scale(graph, weights, shape, f"{name}.norm_output")
        return graph.node("RMSNormalization", value, scale, axis=-1, epsilon=shape.norm_epsilon)
    if shape.residual_scale == 1:
        return value
    return graph.node("Mul", value, graph.constant(shape.residual_scale, np.float32))


def _norm(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, stream: Residual
) -> tuple[ir.Value, ir.Value]:
    """Emit the normed stream, and the stream with the pending addend."""
    scale = norm_scale(graph, weights, shape, name)
    if stream.addend is None:
        normed = graph.node("RMSNormalization", stream.value, scale, axis=-1, epsilon=shape.norm_epsilon)
        return normed, stream.value
    outputs = graph.nodes(
        "SkipSimplifiedLayerNormalization",
        stream.value,
        stream.addend,
        scale,
        outputs=4,
        domain=CONTRIB_DOMAIN,
        epsilon=shape.norm_epsilon,
    )
    return outputs[0], outputs[3]


def _logits(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, stream: Residual, num_logits: ir.Value
) -> ir.Value:
    normed, _ = _norm(graph, weights, shape, "language.norm", stream)
    if shape.logits_divisor != 1:
        normed = graph.node("Div", normed, graph.constant(shape.logits_divisor, np.float32))
    return weights.linear(_last_tokens(graph, normed, num_logits), "embedding" if shape.tied_embeddings else "head")


def _last_tokens(graph: Graph, value: ir.Value, count: ir.Value) -> ir.Value:
    """Keep the last `count` tokens; 0 keeps all, because -0 is the start of the sequence."""
    start = graph.node("Reshape", graph.node("Neg", count), graph.constant([1]))
    return graph.node("Slice", value, start, graph.constant([2**31 - 1]), graph.constant([1]))
