"""Attention masks in a decoder graph: windows of local layers, and image tokens that attend to their whole image."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mcpmq.families.language_shape import LocalAttention
from mcpmq.formats.onnx.graph import Graph

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
TOKEN_TYPES = "token_type_ids"  # an optional input: without it, all tokens are text


@dataclass(frozen=True, slots=True)
class AttentionMasks:
    """Masks of one call, bool [batch, 1, sequence, total]: True for a token that is attended to."""

    everywhere: ir.Value
    within_window: ir.Value


def attention_masks(graph: Graph, local: LocalAttention, position_ids: ir.Value, mask: ir.Value) -> AttentionMasks:
    """Emit the masks of layers without and with a window.

    Tokens attend to earlier ones, and those of an image, `token_type_ids` 1 side by side, to all of it; an image is
    given in one call. `position_ids` int64 [batch, sequence], `mask` int64 [batch, total] with 0 for padding.
    """
    total, length = graph.axis_length(mask, 1), graph.axis_length(position_ids, 1)
    keys = graph.node("Range", graph.constant(0), total, graph.constant(1))
    past = graph.node("Sub", total, length)
    places = graph.node("Range", past, total, graph.constant(1))  # in the cache
    queries = graph.node("Unsqueeze", places, graph.constant([1]))
    is_earlier = graph.node("LessOrEqual", keys, queries)
    allowed = graph.node("Or", is_earlier, _same_image(graph, position_ids, past))
    allowed = graph.node("And", allowed, _padding(graph, mask))
    is_near = graph.node("Greater", keys, graph.node("Sub", queries, graph.constant(local.window)))
    return AttentionMasks(allowed, graph.node("And", allowed, is_near))


def _same_image(graph: Graph, position_ids: ir.Value, past: ir.Value) -> ir.Value:
    """Emit whether a token and another one are of the same image: bool [batch, 1, sequence, total]."""
    types = graph.optional_input(TOKEN_TYPES, ["batch_size", "sequence_length"], np.zeros((1, 1), np.int64))
    types = graph.node("Expand", types, graph.node("Shape", position_ids))
    is_image = graph.node("Equal", types, graph.constant(1))
    shifted = graph.node("Pad", types, graph.constant([0, 1, 0, -1]))
    starts = graph.node("And", is_image, graph.node("Not", graph.node("Equal", shifted, graph.constant(1))))
    numbers = graph.node("CumSum", graph.node("Cast", starts, to=INT64), graph.constant(1))
    numbers = graph.node("Where", is_image, numbers, graph.constant(0))  # 0: text
    zeros = graph.constant([0])
    pads = graph.node("Concat", zeros, graph.node("Reshape", past, graph.constant([1])), zeros, zeros, axis=0)
    keys = graph.node("Unsqueeze", graph.node("Pad", numbers, pads), graph.constant([1, 2]))
    queries = graph.node("Unsqueeze", numbers, graph.constant([1, 3]))
    is_of_image = graph.node("Greater", queries, graph.constant(0))
    return graph.node("And", graph.node("Equal", queries, keys), is_of_image)


def _padding(graph: Graph, mask: ir.Value) -> ir.Value:
    """Emit True for a token, False for padding: bool [batch, 1, 1, total]."""
    return graph.node("Unsqueeze", graph.node("Cast", mask, to=BOOL), graph.constant([1, 2]))
