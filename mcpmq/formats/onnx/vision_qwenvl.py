"""The vision graph of Qwen2-VL, 2.5 and 3: patches of an image -> embeddings, by a rotary tower and mergers."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_source import Weights
from mcpmq.system.progress import Progress

if TYPE_CHECKING:
    import torch

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
WAVELENGTH = 10000.0
QUICK_GELU = 1.702
GRID_NAMES = {"qwen2-vl": "grid_thw"}  # transformers.js calls it otherwise for what came later


@dataclass(frozen=True, slots=True)
class Turn:
    """What rotary attention must know of the patches; the same in every layer."""

    rows: ir.Value  # int64 [1, patches]: which row of the two tables is a patch's
    cosine: ir.Value  # float32 [patches, head width / 2]
    sine: ir.Value
    places: tuple[ir.Value, ir.Value]  # int64 [patches]: its row and its column
    same_window: ir.Value | None  # float32 [1, 1, patches, patches]: 0 where one may look at the other, else -infinite


def emit(graph: Graph, weights: Weights, architecture: Architecture, progress: Progress) -> None:
    """`pixel_values` float32 [patches, 3 * frames * patch * patch] and `grid_thw` (behind 2: `image_grid_thw`) int64
    [1, 3], frames (1), rows and columns of patches of one image -> `image_features` [patches / merge^2, hidden]. Where
    features are stacked those of every layer lie beside one another: [patches / merge^2, (1 + stacked) * hidden].
    """
    shape, width = architecture.sees, architecture.language.hidden
    pixels = graph.input("pixel_values", FLOAT, ["patches", 3 * shape.frames * shape.patch**2])
    grid = graph.input(GRID_NAMES.get(shape.kind, "image_grid_thw"), INT64, [1, 3])
    turn = _turn(graph, weights, shape, grid)
    value = weights.linear(pixels, "vision.patch_embedding")
    if shape.grid:
        value = graph.node("Add", value, _position_embedding(graph, weights, shape, grid, turn))
    value = graph.node("Unsqueeze", value, graph.constant([0]))
    everywhere, stacked = replace(turn, same_window=None), []
    for layer in progress(range(shape.layers), "writing the vision encoder"):
        how = everywhere if layer in shape.full_attention else turn
        value = _layer(graph, weights, shape, f"vision.layers.{layer}", value, how)
        if layer in shape.deep_layers:
            stacked.append(_merged(graph, weights, shape, f"projector.layers.{layer}", value, normed_together=True))
    features = [_merged(graph, weights, shape, "projector", value, normed_together=False), *stacked]
    together = graph.node("Concat", *features, axis=-1) if stacked else features[0]
    graph.output(together, "image_features", FLOAT, ["image_tokens", len(features) * width])


def _position_embedding(graph: Graph, weights: Weights, shape: VisionShape, grid: ir.Value, turn: Turn) -> ir.Value:
    """Mixed from the four nearest cells of a table that is stretched over the image: [patches, hidden]."""
    (rows, row_shares), (columns, column_shares) = (
        _neighbours(graph, shape, graph.node("Gather", grid, graph.constant([axis + 1]), axis=1), place)
        for axis, place in enumerate(turn.places)
    )
    corners = [(row, column) for row in (0, 1) for column in (0, 1)]
    first_cells = [graph.node("Mul", row, graph.constant(shape.grid)) for row in rows]
    cells = [graph.node("Add", first_cells[row], columns[column]) for row, column in corners]
    shares = [graph.node("Mul", row_shares[row], column_shares[column]) for row, column in corners]
    share = graph.node("Unsqueeze", _together(graph, shares), graph.constant([-1]))
    mixed = graph.node("Mul", weights.lookup("vision.position_embedding", _together(graph, cells)), share)
    return graph.node("ReduceSum", mixed, graph.constant([0]), keepdims=0)


def _neighbours(
    graph: Graph, shape: VisionShape, length: ir.Value, place: ir.Value
) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
    """Along one axis the two cells that a patch lies between, and the share of each; ends meet ends."""
    last, one = graph.constant(shape.grid - 1), graph.constant(1)
    steps = graph.node("Max", graph.node("Sub", graph.node("Squeeze", length), one), one)
    scaled = graph.node("Cast", graph.node("Mul", place, last), to=FLOAT)
    exact = graph.node("Div", scaled, graph.node("Cast", steps, to=FLOAT))
    below = graph.node("Floor", exact)
    share, cell = graph.node("Sub", exact, below), graph.node("Cast", below, to=INT64)
    cells = cell, graph.node("Min", graph.node("Add", cell, one), last)
    return cells, (graph.node("Sub", graph.constant(1, np.float32), share), share)


def _together(graph: Graph, values: list[ir.Value]) -> ir.Value:
    """Values [patches] each -> [values, patches]."""
    rows = (graph.node("Unsqueeze", value, graph.constant([0])) for value in values)
    return graph.node("Concat", *rows, axis=0)


def _turn(graph: Graph, weights: Weights, shape: VisionShape, grid: ir.Value) -> Turn:
    """Half of the frequencies turn by a patch's row, half by its column. Patches of a token lie together."""
    count = graph.node("ReduceProd", graph.node("Gather", grid, graph.constant([1, 2]), axis=1), keepdims=0)
    numbers = graph.node("Range", graph.constant(0), count, graph.constant(1))
    merge, area = graph.constant(shape.merge), graph.constant(shape.merge**2)
    columns = graph.node("Squeeze", graph.node("Gather", grid, graph.constant([2]), axis=1))
    token, within = graph.node("Div", numbers, area), graph.node("Mod", numbers, area)
    tokens_a_row = graph.node("Div", columns, merge)
    places = [
        graph.node("Add", graph.node("Mul", graph.node(operator, token, tokens_a_row), merge), one)
        for operator, one in (("Div", graph.node("Div", within, merge)), ("Mod", graph.node("Mod", within, merge)))
    ]
    frequencies = weights.constant(lambda: rotary_frequencies(shape), shape.hidden // shape.heads // 4)
    halves = [
        graph.node("Mul", graph.node("Cast", graph.node("Unsqueeze", one, graph.constant([1])), to=FLOAT), frequencies)
        for one in places
    ]
    angles = graph.node("Concat", *halves, axis=-1)
    rows = graph.node("Unsqueeze", numbers, graph.constant([0]))
    same_window = _same_window(graph, shape.window, places, columns) if shape.window else None
    return Turn(rows, graph.node("Cos", angles), graph.node("Sin", angles), (places[0], places[1]), same_window)


def _same_window(graph: Graph, window: int, places: list[ir.Value], columns: ir.Value) -> ir.Value:
    """Squares of patches counted by rows of squares; the last of a row or column may be cut off."""
    side = graph.constant(window)
    row, column = (graph.node("Div", place, side) for place in places)
    number = graph.node("Add", graph.node("Mul", row, columns), column)
    pairs = (graph.node("Unsqueeze", number, graph.constant([axis])) for axis in (0, 1))
    chosen = graph.constant(0, np.float32), graph.constant(-np.inf, np.float32)
    bias = graph.node("Where", graph.node("Equal", *pairs), *chosen)
    return graph.node("Unsqueeze", bias, graph.constant([0, 1]))


def rotary_frequencies(shape: VisionShape) -> "torch.Tensor":
    """Radians a patch, float32 [head width / 4], rounded as transformers rounds them."""
    import torch  # a forecast emits this graph without it

    half = shape.hidden // shape.heads // 2
    return 1.0 / WAVELENGTH ** (torch.arange(0, half, 2, dtype=torch.float32) / half)


def _layer(graph: Graph, weights: Weights, shape: VisionShape, name: str, value: ir.Value, turn: Turn) -> ir.Value:
    normed = _norm(graph, weights, f"{name}.norm1", value, shape.norm_epsilon)
    query, key, content = weights.linear_parts([normed] * 3, f"{name}.attention.qkv", "qkv")
    turned = [_turned(graph, one, turn, shape.heads) for one in (query, key)]
    look = graph.contributed("MultiHeadAttention", *turned, content, *_bias(turn), num_heads=shape.heads)
    value = graph.node("Add", value, weights.linear(look, f"{name}.attention.o"))
    normed = _norm(graph, weights, f"{name}.norm2", value, shape.norm_epsilon)
    return graph.node("Add", value, _mlp(graph, weights, shape, f"{name}.mlp", normed))


def _bias(turn: Turn) -> list[ir.Value | None]:
    """Inputs of MultiHeadAttention behind the three: no bias of the projections, no padding, who may look at whom."""
    return [None, None, turn.same_window] if turn.same_window else []


def _mlp(graph: Graph, weights: Weights, shape: VisionShape, name: str, value: ir.Value) -> ir.Value:
    """Gated by SiLU where there is a gate, else GELU: by tanh of 3, the quick one of 2."""
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


def _turned(graph: Graph, value: ir.Value, turn: Turn, heads: int) -> ir.Value:
    return graph.contributed(
        "RotaryEmbedding", value, turn.rows, turn.cosine, turn.sine, num_heads=heads, interleaved=0
    )


def _norm(graph: Graph, weights: Weights, name: str, value: ir.Value, epsilon: float) -> ir.Value:
    if not weights.has(f"{name}.bias"):
        return graph.node("RMSNormalization", value, weights.vector(name), axis=-1, epsilon=epsilon)
    parts = weights.vector(name), weights.vector(f"{name}.bias")
    return graph.node("LayerNormalization", value, *parts, axis=-1, epsilon=epsilon)


def _merged(
    graph: Graph, weights: Weights, shape: VisionShape, name: str, value: ir.Value, *, normed_together: bool
) -> ir.Value:
    """Squares of patches become tokens: [tokens, width]."""
    square = graph.constant([-1, shape.hidden * shape.merge**2])
    if normed_together:
        squares = _norm(graph, weights, f"{name}.norm", graph.node("Reshape", value, square), shape.norm_epsilon)
    else:
        squares = graph.node("Reshape", _norm(graph, weights, f"{name}.norm", value, shape.norm_epsilon), square)
    return weights.linear(graph.node("Gelu", weights.linear(squares, f"{name}.up")), f"{name}.down")
