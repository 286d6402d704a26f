"""The vision graph of MiniCPM-V 4.6: packed patches of a slice -> embeddings, by SigLIP and two mergers."""

from dataclasses import dataclass

import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx import vision
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_source import Weights
from mcpmq.system.progress import Progress

SQUARE = 4  # patches that are merged at a time, two by two
MERGER_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of patches in a slice: int64 scalars."""

    rows: ir.Value
    columns: ir.Value


def emit(graph: Graph, weights: Weights, architecture: Architecture, progress: Progress) -> None:
    """`pixel_values` float32 [1, 3, patch, patch * patches] and `tgt_sizes` int64 [1, 2], rows and columns of patches
    of one slice -> `image_features` [patches / merge^2, hidden].
    """
    shape, width = architecture.sees, architecture.language.hidden
    pixels = graph.input("pixel_values", vision.FLOAT, [1, 3, shape.patch, "patches_times_patch"])
    sizes = graph.input("tgt_sizes", vision.INT64, [1, 2])
    value, _, _ = vision.embedded(graph, weights, shape, pixels, sizes)
    sides = (graph.node("Gather", sizes, graph.constant([axis]), axis=1) for axis in (0, 1))
    grid = Grid(*(graph.node("Squeeze", side) for side in sides))
    for number in progress(range(shape.layers), "writing the vision encoder"):
        value = vision.layer(graph, weights, shape, f"vision.layers.{number}", value, vision.fused_attention)
        if shape.merges_inside and number == shape.merger_layer:
            value, grid = _merged_inside(graph, weights, shape, value, grid)
    value = vision.norm(graph, weights, "vision.post_norm", value, shape.norm_epsilon)
    squares = _squares(graph, shape, value, grid)
    normed = vision.norm(graph, weights, "projector.norm", _joined(graph, shape, squares), MERGER_EPSILON)
    hidden = graph.node("Gelu", weights.linear(normed, "projector.up"))
    graph.output(weights.linear(hidden, "projector.down"), "image_features", vision.FLOAT, ["image_tokens", width])


def _squares(graph: Graph, shape: VisionShape, value: ir.Value, grid: Grid) -> ir.Value:
    """Patches [1, patches, hidden] row by row -> [squares, 4, hidden], squares row by row."""
    halves = [graph.node("Div", side, graph.constant(2)) for side in (grid.rows, grid.columns)]
    rows, columns = (graph.node("Unsqueeze", half, graph.constant([0])) for half in halves)
    two, hidden = graph.constant([2]), graph.constant([shape.hidden])
    split = graph.node("Reshape", value, graph.node("Concat", rows, two, columns, two, hidden, axis=0))
    together = graph.node("Transpose", split, perm=[0, 2, 1, 3, 4])
    return graph.node("Reshape", together, graph.constant([-1, SQUARE, shape.hidden]))


def _joined(graph: Graph, shape: VisionShape, squares: ir.Value) -> ir.Value:
    """[squares, 4, hidden] -> [squares, 4 * hidden]."""
    return graph.node("Reshape", squares, graph.constant([-1, SQUARE * shape.hidden]))


def _merged_inside(
    graph: Graph, weights: Weights, shape: VisionShape, value: ir.Value, grid: Grid
) -> tuple[ir.Value, Grid]:
    """Attention inside of squares, then one patch of each: the mean of the four, and what a matrix makes of them."""
    squares = _squares(graph, shape, value, grid)
    normed = vision.norm(graph, weights, "vision.merger.norm1", squares, shape.norm_epsilon)
    query, key, content = (weights.linear(normed, f"vision.merger.attention.{part}") for part in "qkv")
    attended = vision.fused_attention(graph, query, key, content, shape.heads, shape.hidden)
    squares = graph.node("Add", squares, weights.linear(attended, "vision.merger.attention.o"))
    normed = vision.norm(graph, weights, "vision.merger.norm2", _joined(graph, shape, squares), shape.norm_epsilon)
    hidden = graph.node("Gelu", weights.linear(normed, "vision.merger.up"), approximate="tanh")
    mean = graph.node("ReduceMean", squares, graph.constant([1]), keepdims=0)
    merged = graph.node("Add", weights.linear(hidden, "vision.merger.down"), mean)
    halves = (graph.node("Div", side, graph.constant(2)) for side in (grid.rows, grid.columns))
    return graph.node("Unsqueeze", merged, graph.constant([0])), Grid(*halves)
