"""Multi-head latent attention in a decoder graph; the KV cache contains full keys and values, not the latents."""

from collections.abc import Callable

import onnx_ir as ir

from mcpmq.families.language_shape import LanguageShape, LatentAttention
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter

ApplyRotary = Callable[[ir.Value, int], ir.Value]
"""(values [batch, sequence, heads * rotary_dim], number of heads) -> rotated values."""


def project_queries(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, value: ir.Value, apply_rotary: ApplyRotary
) -> ir.Value:
    """Emit the queries: [batch, sequence, heads * head_dim]."""
    assert shape.latent_attention is not None
    latents = _normed(graph, weights, shape, f"{name}.norm_q_a", weights.linear(value, f"{name}.q_a"))
    heads = _by_head(graph, shape, weights.linear(latents, f"{name}.q_b"))
    nope, rotary = _split(graph, heads, shape.latent_attention.qk_nope_head_dim, shape.rotary_dim)
    rotary = _by_head(graph, shape, apply_rotary(_flat(graph, rotary), shape.num_heads))
    return _flat(graph, graph.node("Concat", nope, rotary, axis=-1))


def project_keys_values(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, value: ir.Value, apply_rotary: ApplyRotary
) -> tuple[ir.Value, ir.Value]:
    """Emit keys and values: [batch, sequence, heads * head_dim] each; values are padded with zeros to head_dim."""
    latent = shape.latent_attention
    assert latent is not None
    latents, rotary = _split(graph, weights.linear(value, f"{name}.kv_a"), latent.kv_lora_rank, shape.rotary_dim)
    latents = _normed(graph, weights, shape, f"{name}.norm_kv_a", latents)
    heads = _by_head(graph, shape, weights.linear(latents, f"{name}.kv_b"))
    nope, content = _split(graph, heads, latent.qk_nope_head_dim, latent.v_head_dim)
    shared = graph.node("Unsqueeze", apply_rotary(rotary, 1), graph.constant([2]))  # one for all heads
    shared = graph.node("Expand", shared, graph.constant([1, 1, shape.num_heads, shape.rotary_dim]))
    key = graph.node("Concat", nope, shared, axis=-1)
    missing = shape.head_dim - latent.v_head_dim
    padded = graph.node("Pad", content, graph.constant([0, 0, 0, 0, 0, 0, 0, missing]))
    return _flat(graph, key), _flat(graph, padded)


def remove_value_padding(graph: Graph, shape: LanguageShape, latent: LatentAttention, attended: ir.Value) -> ir.Value:
    """Remove the padding: [batch, sequence, heads * head_dim] -> [batch, sequence, heads * v_head_dim]."""
    heads = _by_head(graph, shape, attended)
    content, _ = _split(graph, heads, latent.v_head_dim, shape.head_dim - latent.v_head_dim)
    return _flat(graph, content)


def _split(graph: Graph, value: ir.Value, first: int, second: int) -> tuple[ir.Value, ir.Value]:
    left, right = graph.nodes("Split", value, graph.constant([first, second]), outputs=2, axis=-1)
    return left, right


def _by_head(graph: Graph, shape: LanguageShape, value: ir.Value) -> ir.Value:
    return graph.node("Reshape", value, graph.constant([0, 0, shape.num_heads, -1]))


def _flat(graph: Graph, value: ir.Value) -> ir.Value:
    return graph.node("Reshape", value, graph.constant([0, 0, -1]))


def _normed(graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, value: ir.Value) -> ir.Value:
    return graph.node("RMSNormalization", value, weights.vector(name), axis=-1, epsilon=shape.norm_epsilon)
