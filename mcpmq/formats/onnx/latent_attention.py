"""Multi-head latent attention in a decoder's graph: the cache holds whole keys and values, as any other's does."""

from collections.abc import Callable

import onnx_ir as ir

from mcpmq.families.family import LanguageShape, LatentAttention
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_source import Weights

Turn = Callable[[ir.Value, int], ir.Value]
"""From values [batch, sequence, heads * turned width] and the number of heads to the same, turned."""


def queries(graph: Graph, weights: Weights, shape: LanguageShape, name: str, value: ir.Value, turn: Turn) -> ir.Value:
    """[batch, sequence, heads * head width]."""
    assert shape.latent is not None
    few = _normed(graph, weights, shape, f"{name}.norm_q_a", weights.linear(value, f"{name}.q_a"))
    heads = _by_head(graph, shape, weights.linear(few, f"{name}.q_b"))
    plain, turned = _parts(graph, heads, shape.latent.plain_width, shape.turned_width)
    turned = _by_head(graph, shape, turn(_flat(graph, turned), shape.heads))
    return _flat(graph, graph.node("Concat", plain, turned, axis=-1))


def keys_and_values(
    graph: Graph, weights: Weights, shape: LanguageShape, name: str, value: ir.Value, turn: Turn
) -> tuple[ir.Value, ir.Value]:
    """[batch, sequence, heads * head width] each; zeros fill what values are narrower."""
    latent = shape.latent
    assert latent is not None
    few, turned = _parts(graph, weights.linear(value, f"{name}.kv_a"), latent.key_rank, shape.turned_width)
    few = _normed(graph, weights, shape, f"{name}.norm_kv_a", few)
    heads = _by_head(graph, shape, weights.linear(few, f"{name}.kv_b"))
    plain, content = _parts(graph, heads, latent.plain_width, latent.value_width)
    shared = graph.node("Unsqueeze", turn(turned, 1), graph.constant([2]))  # one for all heads
    shared = graph.node("Expand", shared, graph.constant([1, 1, shape.heads, shape.turned_width]))
    key = graph.node("Concat", plain, shared, axis=-1)
    missing = shape.head_width - latent.value_width
    padded = graph.node("Pad", content, graph.constant([0, 0, 0, 0, 0, 0, 0, missing]))
    return _flat(graph, key), _flat(graph, padded)


def without_filling(graph: Graph, shape: LanguageShape, latent: LatentAttention, attended: ir.Value) -> ir.Value:
    """[batch, sequence, heads * head width] -> [batch, sequence, heads * value width]."""
    heads = _by_head(graph, shape, attended)
    content, _ = _parts(graph, heads, latent.value_width, shape.head_width - latent.value_width)
    return _flat(graph, content)


def _parts(graph: Graph, value: ir.Value, first: int, second: int) -> tuple[ir.Value, ir.Value]:
    one, other = graph.nodes("Split", value, graph.constant([first, second]), outputs=2, axis=-1)
    return one, other


def _by_head(graph: Graph, shape: LanguageShape, value: ir.Value) -> ir.Value:
    return graph.node("Reshape", value, graph.constant([0, 0, shape.heads, -1]))


def _flat(graph: Graph, value: ir.Value) -> ir.Value:
    return graph.node("Reshape", value, graph.constant([0, 0, -1]))


def _normed(graph: Graph, weights: Weights, shape: LanguageShape, name: str, value: ir.Value) -> ir.Value:
    return graph.node("RMSNormalization", value, weights.vector(name), axis=-1, epsilon=shape.norm_epsilon)
