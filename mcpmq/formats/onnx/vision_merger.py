"""Emit the vision graph of MiniCPM-V 4.6, SigLIP with two mergers: packed patches of a slice -> image features."""

from dataclasses import dataclass

import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx import vision
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress

MERGED_PATCHES = 4  # two by two
MERGER_NORM_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Rows and columns of patches in a slice: int64 scalars."""

    rows: ir.Value
    columns: ir.Value


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for one slice.

    Inputs: `pixel_values` float32 [1, 3, patch, patch * patches]; `tgt_sizes` int64 [1, 2], rows and columns of
    patches. Output: `image_features` float32 [patches / merge^2, hidden].
    """
    shape, width = architecture.required_vision, architecture.language.hidden_size
    pixels = graph.input("pixel_values", vision.FLOAT, [1, 3, shape.patch_size, "patches_times_patch"])
    sizes = graph.input("tgt_sizes", vision.INT64, [1, 2])
    value, _, _ = vision.embed_patches(graph, weights, shape, pixels, sizes)
    sides = (graph.node("Gather", sizes, graph.constant([axis]), axis=1) for axis in (0, 1))
    grid = PatchGrid(*(graph.node("Squeeze", side) for side in sides))
    for number in progress(range(shape.num_layers), "writing the vision encoder"):
        value = vision.encoder_layer(graph, weights, shape, f"vision.layers.{number}", value, vision.fused_attention)
        if shape.uses_vit_merger and number == shape.merger_layer:
            value, grid = _merge_in_encoder(graph, weights, shape, value, grid)
    value = vision.layer_norm(graph, weights, "vision.post_norm", value, shape.norm_epsilon)
    squares = _squares(graph, shape, value, grid)
    normed = vision.layer_norm(
        graph, weights, "projector.norm", _concat_square(graph, shape, squares), MERGER_NORM_EPSILON
    )
    hidden = graph.node("Gelu", weights.linear(normed, "projector.up"))
    graph.output(weights.linear(hidden, "projector.down"), "image_features", vision.FLOAT, ["image_tokens", width])


def _squares(graph: Graph, shape: VisionShape, value: ir.Value, grid: PatchGrid) -> ir.Value:
    """Group patches 2 x 2: [1, patches, hidden] -> [squares, 4, hidden], both in row-major order."""
    halves = [graph.node("Div", side, graph.constant(2)) for side in (grid.rows, grid.columns)]
    rows, columns = (graph.node("Unsqueeze", half, graph.constant([0])) for half in halves)
    two, hidden = graph.constant([2]), graph.constant([shape.hidden_size])
    split = graph.node("Reshape", value, graph.node("Concat", rows, two, columns, two, hidden, axis=0))
    grouped = graph.node("Transpose", split, perm=[0, 2, 1, 3, 4])
    return graph.node("Reshape", grouped, graph.constant([-1, MERGED_PATCHES, shape.hidden_size]))


def _concat_square(graph: Graph, shape: VisionShape, squares: ir.Value) -> ir.Value:
    """Concatenate the patches of a square: [squares, 4, hidden] -> [squares, 4 * hidden]."""
    return graph.node("Reshape", squares, graph.constant([-1, MERGED_PATCHES * shape.hidden_size]))


def _merge_in_encoder(
    graph: Graph, weights: WeightEmitter, shape: VisionShape, value: ir.Value, grid: PatchGrid
) -> tuple[ir.Value, PatchGrid]:
    """Attend within squares, then merge each into one patch: the mean of the four plus an MLP of all four."""
    squares = _squares(graph, shape, value, grid)
    normed = vision.layer_norm(graph, weights, "vision.merger.norm1", squares, shape.norm_epsilon)
    query, key, content = (weights.linear(normed, f"vision.merger.attention.{part}") for part in "qkv")
    attended = vision.fused_attention(graph, query, key, content, shape.num_heads, shape.hidden_size)
    squares = graph.node("Add", squares, weights.linear(attended, "vision.merger.attention.o"))
    normed = vision.layer_norm(
        graph, weights, "vision.merger.norm2", _concat_square(graph, shape, squares), shape.norm_epsilon
    )
    hidden = graph.node("Gelu", weights.linear(normed, "vision.merger.up"), approximate="tanh")
    mean = graph.node("ReduceMean", squares, graph.constant([1]), keepdims=0)
    merged = graph.node("Add", weights.linear(hidden, "vision.merger.down"), mean)
    halves = (graph.node("Div", side, graph.constant(2)) for side in (grid.rows, grid.columns))
    return graph.node("Unsqueeze", merged, graph.constant([0])), PatchGrid(*halves)
