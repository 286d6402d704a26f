"""Emit the vision graph of Qwen2-VL, 2.5 and 3: patches of an image -> image features, with rotary positions."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.vision import project
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress

if TYPE_CHECKING:
    import torch

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
WAVELENGTH = 10000.0
QUICK_GELU = 1.702
GRID_INPUT_NAMES = {"qwen2-vl": "grid_thw"}  # transformers.js; `image_grid_thw` for its successors


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary positions and windows of the patches, shared by all layers."""

    table_rows: ir.Value  # int64 [1, patches]: row of each patch in the two tables
    cosine: ir.Value  # float32 [patches, head_dim / 2]
    sine: ir.Value
    coordinates: tuple[ir.Value, ir.Value]  # int64 [patches]: row and column of each patch
    window_bias: ir.Value | None  # float32 [1, 1, patches, patches]: 0 within a window, else -inf


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for one image.

    Inputs: `pixel_values` float32 [patches, 3 * frames * patch * patch]; `grid_thw` (Qwen2-VL) or `image_grid_thw`
    int64 [1, 3], frames (1), rows and columns of patches.
    Output: `image_features` float32 [patches / merge^2, (1 + deepstack layers) * hidden].
    """
    shape, width = architecture.required_vision, architecture.language.hidden_size
    pixels = graph.input("pixel_values", FLOAT, ["patches", 3 * shape.temporal_patch_size * shape.patch_size**2])
    grid = graph.input(GRID_INPUT_NAMES.get(shape.kind, "image_grid_thw"), INT64, [1, 3])
    rotary = _rotary(graph, weights, shape, grid)
    value = weights.linear(pixels, "vision.patch_embedding")
    if shape.position_grid_size:
        value = graph.node("Add", value, _position_embedding(graph, weights, shape, grid, rotary))
    value = graph.node("Unsqueeze", value, graph.constant([0]))
    global_rotary, deepstack = replace(rotary, window_bias=None), []
    for layer in progress(range(shape.num_layers), "writing the vision encoder"):
        layer_rotary = global_rotary if layer in shape.full_attention_layers else rotary
        value = _layer(graph, weights, shape, f"vision.layers.{layer}", value, layer_rotary)
        if layer in shape.deepstack_layers:
            deepstack.append(
                _merge(graph, weights, shape, f"projector.layers.{layer}", value, norm_after_grouping=True)
            )
    features = [_merge(graph, weights, shape, "projector", value, norm_after_grouping=False), *deepstack]
    output = graph.node("Concat", *features, axis=-1) if deepstack else features[0]
    graph.output(output, "image_features", FLOAT, ["image_tokens", len(features) * width])


def _position_embedding(
    graph: Graph, weights: WeightEmitter, shape: VisionShape, grid: ir.Value, rotary: Rotary
) -> ir.Value:
    """Interpolate a position table over the image, from the four nearest cells of each patch: [patches, hidden]."""
    (rows, row_weights), (columns, column_weights) = (
        _neighbors(graph, shape, graph.node("Gather", grid, graph.constant([axis + 1]), axis=1), index)
        for axis, index in enumerate(rotary.coordinates)
    )
    corners = [(row, column) for row in (0, 1) for column in (0, 1)]
    first_cells = [graph.node("Mul", row, graph.constant(shape.position_grid_size)) for row in rows]
    cells = [graph.node("Add", first_cells[row], columns[column]) for row, column in corners]
    corner_weights = [graph.node("Mul", row_weights[row], column_weights[column]) for row, column in corners]
    weight = graph.node("Unsqueeze", _stack(graph, corner_weights), graph.constant([-1]))
    mixed = graph.node("Mul", weights.lookup("vision.position_embedding", _stack(graph, cells)), weight)
    return graph.node("ReduceSum", mixed, graph.constant([0]), keepdims=0)


def _neighbors(
    graph: Graph, shape: VisionShape, length: ir.Value, index: ir.Value
) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
    """Emit the two table cells next to each patch along one axis, and their weights; the ends are aligned."""
    last, one = graph.constant(shape.position_grid_size - 1), graph.constant(1)
    steps = graph.node("Max", graph.node("Sub", graph.node("Squeeze", length), one), one)
    scaled = graph.node("Cast", graph.node("Mul", index, last), to=FLOAT)
    exact = graph.node("Div", scaled, graph.node("Cast", steps, to=FLOAT))
    below = graph.node("Floor", exact)
    fraction, cell = graph.node("Sub", exact, below), graph.node("Cast", below, to=INT64)
    cells = cell, graph.node("Min", graph.node("Add", cell, one), last)
    return cells, (graph.node("Sub", graph.constant(1, np.float32), fraction), fraction)


def _stack(graph: Graph, values: list[ir.Value]) -> ir.Value:
    """Stack values [patches] to [values, patches]."""
    rows = (graph.node("Unsqueeze", value, graph.constant([0])) for value in values)
    return graph.node("Concat", *rows, axis=0)


def _rotary(graph: Graph, weights: WeightEmitter, shape: VisionShape, grid: ir.Value) -> Rotary:
    """Emit the angles of every patch: half of the frequencies by row, half by column."""
    count = graph.node("ReduceProd", graph.node("Gather", grid, graph.constant([1, 2]), axis=1), keepdims=0)
    numbers = graph.node("Range", graph.constant(0), count, graph.constant(1))
    row, column, columns = _coordinates(graph, shape, grid, numbers)
    frequencies = weights.constant(lambda: inverse_frequencies(shape), shape.hidden_size // shape.num_heads // 4)
    halves = [
        graph.node("Mul", graph.node("Cast", graph.node("Unsqueeze", one, graph.constant([1])), to=FLOAT), frequencies)
        for one in (row, column)
    ]
    angles = graph.node("Concat", *halves, axis=-1)
    table_rows = graph.node("Unsqueeze", numbers, graph.constant([0]))
    window_bias = _window_bias(graph, shape.window_size, row, column, columns) if shape.window_size else None
    return Rotary(table_rows, graph.node("Cos", angles), graph.node("Sin", angles), (row, column), window_bias)


def _coordinates(
    graph: Graph, shape: VisionShape, grid: ir.Value, numbers: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Emit the row and column of every patch and the number of columns; the patches of a token are adjacent."""
    merge, area = graph.constant(shape.spatial_merge_size), graph.constant(shape.spatial_merge_size**2)
    columns = graph.node("Squeeze", graph.node("Gather", grid, graph.constant([2]), axis=1))
    token, within = graph.node("Div", numbers, area), graph.node("Mod", numbers, area)
    tokens_per_row = graph.node("Div", columns, merge)
    row_within, column_within = graph.node("Div", within, merge), graph.node("Mod", within, merge)
    row = graph.node("Mul", graph.node("Div", token, tokens_per_row), merge)
    row = graph.node("Add", row, row_within)
    column = graph.node("Mul", graph.node("Mod", token, tokens_per_row), merge)
    return row, graph.node("Add", column, column_within), columns


def _window_bias(graph: Graph, window_size: int, row: ir.Value, column: ir.Value, columns: ir.Value) -> ir.Value:
    """Emit an attention bias that separates windows; the last window of a row or column may be partial."""
    side = graph.constant(window_size)
    window_row, window_column = graph.node("Div", row, side), graph.node("Div", column, side)
    number = graph.node("Add", graph.node("Mul", window_row, columns), window_column)
    pairs = (graph.node("Unsqueeze", number, graph.constant([axis])) for axis in (0, 1))
    values = graph.constant(0, np.float32), graph.constant(-np.inf, np.float32)
    bias = graph.node("Where", graph.node("Equal", *pairs), *values)
    return graph.node("Unsqueeze", bias, graph.constant([0, 1]))


def inverse_frequencies(shape: VisionShape) -> "torch.Tensor":
    """Return the radians per patch, float32 [head_dim / 4], with the rounding of transformers."""
    import torch  # a forecast emits this graph without it

    half = shape.hidden_size // shape.num_heads // 2
    return 1.0 / WAVELENGTH ** (torch.arange(0, half, 2, dtype=torch.float32) / half)


def _layer(
    graph: Graph, weights: WeightEmitter, shape: VisionShape, name: str, value: ir.Value, rotary: Rotary
) -> ir.Value:
    normed = _norm(graph, weights, f"{name}.norm1", value, shape.norm_epsilon)
    query, key, content = project(weights, normed, f"{name}.attention")
    rotated = [_rotate(graph, one, rotary, shape.num_heads) for one in (query, key)]
    heads, bias = shape.num_heads, _attention_bias(rotary)
    attended = graph.contrib_node("MultiHeadAttention", *rotated, content, *bias, num_heads=heads)
    value = graph.node("Add", value, weights.linear(attended, f"{name}.attention.o"))
    normed = _norm(graph, weights, f"{name}.norm2", value, shape.norm_epsilon)
    return graph.node("Add", value, _mlp(graph, weights, shape, f"{name}.mlp", normed))


def _attention_bias(rotary: Rotary) -> list[ir.Value | None]:
    """Return the optional inputs of MultiHeadAttention: no projection bias, no padding mask, the window bias."""
    return [None, None, rotary.window_bias] if rotary.window_bias else []


def _mlp(graph: Graph, weights: WeightEmitter, shape: VisionShape, name: str, value: ir.Value) -> ir.Value:
    """Emit the MLP: SwiGLU in 2.5, GELU with tanh in 3, quick GELU in 2."""
    hidden = weights.linear(value, f"{name}.up")
    if shape.kind == "qwen3-vl":
        hidden = graph.node("Gelu", hidden, approximate="tanh")
    elif weights.has(f"{name}.gate"):
        gate = weights.linear(value, f"{name}.gate")
        hidden = graph.node("Mul", graph.node("Mul", gate, graph.node("Sigmoid", gate)), hidden)
    else:
        gate = graph.node("Sigmoid", graph.node("Mul", hidden, graph.constant(QUICK_GELU, np.float32)))
        hidden = graph.node("Mul", hidden, gate)
    return weights.linear(hidden, f"{name}.down")


def _rotate(graph: Graph, value: ir.Value, rotary: Rotary, heads: int) -> ir.Value:
    return graph.contrib_node(
        "RotaryEmbedding", value, rotary.table_rows, rotary.cosine, rotary.sine, num_heads=heads, interleaved=0
    )


def _norm(graph: Graph, weights: WeightEmitter, name: str, value: ir.Value, epsilon: float) -> ir.Value:
    if not weights.has(f"{name}.bias"):
        return graph.node("RMSNormalization", value, weights.vector(name), axis=-1, epsilon=epsilon)
    parts = weights.vector(name), weights.vector(f"{name}.bias")
    return graph.node("LayerNormalization", value, *parts, axis=-1, epsilon=epsilon)


def _merge(
    graph: Graph, weights: WeightEmitter, shape: VisionShape, name: str, value: ir.Value, *, norm_after_grouping: bool
) -> ir.Value:
    """Merge squares of patches to tokens: [tokens, width]."""
    square = graph.constant([-1, shape.hidden_size * shape.spatial_merge_size**2])
    if norm_after_grouping:
        squares = _norm(graph, weights, f"{name}.norm", graph.node("Reshape", value, square), shape.norm_epsilon)
    else:
        squares = graph.node("Reshape", _norm(graph, weights, f"{name}.norm", value, shape.norm_epsilon), square)
    return weights.linear(graph.node("Gelu", weights.linear(squares, f"{name}.up")), f"{name}.down")
