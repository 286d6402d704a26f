"""The vision graph: packed patches of slices -> embeddings, by a SigLIP tower and a resampler behind it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.families.resampler import HEAD_WIDTH_OF_RESAMPLER
from mcpmq.formats.onnx import interpolate
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_source import Weights
from mcpmq.system.progress import Progress

if TYPE_CHECKING:
    import torch

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
RESAMPLER_NORM_EPSILON = 1e-6
WAVELENGTH = 10000.0
Attention = Callable[[Graph, ir.Value, ir.Value, ir.Value, int, int], ir.Value]
"""From a graph, queries, keys, values, the number of heads and the width of all together to what is attended."""


def emit(graph: Graph, weights: Weights, architecture: Architecture, progress: Progress) -> None:
    """`pixel_values` float32 [slices, 3, patch, patch * patches] and `tgt_sizes` int64 [slices, 2], rows and columns of
    patches -> `image_features` [slices * queries, hidden]. The slices of one call have equally many patches.
    """
    shape, width = architecture.sees, architecture.language.hidden
    pixels = graph.input("pixel_values", FLOAT, ["slices", 3, shape.patch, "patches_times_patch"])
    sizes = graph.input("tgt_sizes", INT64, ["slices", 2])
    features = _features(graph, weights, architecture, pixels, sizes, fused_attention, progress)
    graph.output(features, "image_features", FLOAT, ["image_tokens", width])


def emit_static(
    graph: Graph, weights: Weights, architecture: Architecture, size: tuple[int, int], progress: Progress
) -> None:
    """The same for one slice of one size in patches, rows and columns, known beforehand: standard operators only."""
    shape, width = architecture.sees, architecture.language.hidden
    pixels = graph.input("pixel_values", FLOAT, [1, 3, shape.patch, shape.patch * size[0] * size[1]])
    sizes = graph.constant([size])
    features = _features(graph, weights, architecture, pixels, sizes, _standard_attention, progress)
    graph.output(features, "image_features", FLOAT, [shape.queries, width])


def _features(
    graph: Graph,
    weights: Weights,
    architecture: Architecture,
    pixels: ir.Value,
    sizes: ir.Value,
    attention: Attention,
    progress: Progress,
) -> ir.Value:
    shape, width = architecture.sees, architecture.language.hidden
    value, row, column = embedded(graph, weights, shape, pixels, sizes)
    for number in progress(range(shape.layers), "writing the vision encoder"):
        value = layer(graph, weights, shape, f"vision.layers.{number}", value, attention)
    value = norm(graph, weights, "vision.post_norm", value, shape.norm_epsilon)
    position = graph.node("Concat", *(_axis_code(graph, weights, axis, width // 2) for axis in (column, row)), axis=-1)
    return _resampled(graph, weights, shape.queries, width, value, position, attention)


def fused_attention(graph: Graph, query: ir.Value, key: ir.Value, content: ir.Value, heads: int, _: int) -> ir.Value:
    """Values [slices, tokens, width] each -> the same: one operator of ONNX Runtime's own."""
    return graph.contributed("MultiHeadAttention", query, key, content, num_heads=heads)


def _standard_attention(
    graph: Graph, query: ir.Value, key: ir.Value, content: ir.Value, heads: int, width: int
) -> ir.Value:
    """The same written out in operators that every accelerator has."""
    apart, together = graph.constant([0, 0, heads, width // heads]), graph.constant([0, 0, width])
    query, key, content = (
        graph.node("Transpose", graph.node("Reshape", value, apart), perm=perm)
        for value, perm in ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (content, [0, 2, 1, 3]))
    )
    query = graph.node("Mul", query, graph.constant((width // heads) ** -0.5, np.float32))
    chances = graph.node("Softmax", graph.node("MatMul", query, key), axis=-1)
    mixed = graph.node("Transpose", graph.node("MatMul", chances, content), perm=[0, 2, 1, 3])
    return graph.node("Reshape", mixed, together)


def embedded(
    graph: Graph, weights: Weights, shape: VisionShape, pixels: ir.Value, sizes: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """What the first layer sees [slices, patches, hidden], and the row and column of every patch."""
    value = _patches(graph, weights, shape, pixels)
    row, column = _coordinates(graph, value, sizes)
    return graph.node("Add", value, _position_embedding(graph, weights, shape, sizes, row, column)), row, column


def _patches(graph: Graph, weights: Weights, shape: VisionShape, pixels: ir.Value) -> ir.Value:
    """[slices, 3, patch, patch * patches] -> [slices, patches, hidden]."""
    kernel, bias = weights.array("vision.patch_embedding"), weights.vector("vision.patch_embedding.bias")
    side = [shape.patch, shape.patch]
    embedded = graph.node("Conv", pixels, kernel, bias, kernel_shape=side, strides=side)
    return graph.node("Transpose", graph.node("Squeeze", embedded, graph.constant([2])), perm=[0, 2, 1])


def _coordinates(graph: Graph, patches: ir.Value, sizes: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Row and column of every patch in its slice: int64 [slices, patches] each."""
    numbers = graph.node("Range", graph.constant(0), graph.size(patches, 1), graph.constant(1))
    columns = _side(graph, sizes, 1)
    return graph.node("Div", numbers, columns), graph.node("Mod", numbers, columns)


def _side(graph: Graph, sizes: ir.Value, axis: int) -> ir.Value:
    """Rows (axis 0) or columns (axis 1) of every slice: int64 [slices, 1]."""
    return graph.node("Gather", sizes, graph.constant([axis]), axis=1)


def _position_embedding(
    graph: Graph, weights: Weights, shape: VisionShape, sizes: ir.Value, row: ir.Value, column: ir.Value
) -> ir.Value:
    """The learned embedding of the nearest cell of a square grid; in integers, where rounding cannot move a patch."""
    if shape.kind == "timm-resampler":
        return interpolate.position_embedding(graph, weights, shape, (row, column), sizes)
    if shape.one_row:
        number, count = graph.node("Add", graph.node("Mul", row, _side(graph, sizes, 1)), column), graph.size(row, 1)
        return weights.lookup("vision.position_embedding", _cell(graph, number, count, shape.grid))
    cells = [_cell(graph, index, _side(graph, sizes, axis), shape.grid) for axis, index in enumerate((row, column))]
    cell = graph.node("Add", graph.node("Mul", cells[0], graph.constant(shape.grid)), cells[1])
    return weights.lookup("vision.position_embedding", cell)


def _cell(graph: Graph, index: ir.Value, length: ir.Value, grid: int) -> ir.Value:
    return graph.node("Div", graph.node("Mul", index, graph.constant(grid)), length)


def layer(
    graph: Graph, weights: Weights, shape: VisionShape, name: str, value: ir.Value, attention: Attention
) -> ir.Value:
    """One layer of the tower: [slices, patches, hidden] before and after."""
    normed = norm(graph, weights, f"{name}.norm1", value, shape.norm_epsilon)
    query, key, content = _projected(weights, normed, f"{name}.attention")
    attended = attention(graph, query, key, content, shape.heads, shape.hidden)
    value = graph.node("Add", value, weights.linear(attended, f"{name}.attention.o"))
    normed = norm(graph, weights, f"{name}.norm2", value, shape.norm_epsilon)
    gelu = "none" if shape.kind == "timm-resampler" else "tanh"
    activated = graph.node("Gelu", weights.linear(normed, f"{name}.mlp.up"), approximate=gelu)
    return graph.node("Add", value, weights.linear(activated, f"{name}.mlp.down"))


def _projected(weights: Weights, value: ir.Value, name: str) -> tuple[ir.Value, ...]:
    """Queries, keys and values, of one matrix or of three."""
    if weights.has(f"{name}.qkv"):
        return weights.linear_parts([value] * 3, f"{name}.qkv", "qkv")
    return tuple(weights.linear(value, f"{name}.{part}") for part in "qkv")


def norm(graph: Graph, weights: Weights, name: str, value: ir.Value, epsilon: float) -> ir.Value:
    """A layer norm with scale and bias."""
    parts = weights.vector(name), weights.vector(f"{name}.bias")
    return graph.node("LayerNormalization", value, *parts, axis=-1, epsilon=epsilon)


def _axis_code(graph: Graph, weights: Weights, coordinate: ir.Value, width: int) -> ir.Value:
    """Sine then cosine of a coordinate [slices, patches] at falling frequencies: [slices, patches, width]."""
    frequencies = weights.constant(lambda: axis_frequencies(width), width // 2)
    position = graph.node("Cast", graph.node("Unsqueeze", coordinate, graph.constant([-1])), to=FLOAT)
    angles = graph.node("Mul", position, frequencies)
    return graph.node("Concat", graph.node("Sin", angles), graph.node("Cos", angles), axis=-1)


def axis_frequencies(width: int) -> "torch.Tensor":
    """Radians a patch, float32 [width / 2], rounded as the native module rounds them."""
    import torch  # a forecast emits this graph without it

    exponents: torch.Tensor = torch.arange(width // 2, dtype=torch.float32) / (width / 2)
    return WAVELENGTH**-exponents


def _resampled(
    graph: Graph,
    weights: Weights,
    queries: int,
    width: int,
    patches: ir.Value,
    position: ir.Value,
    attention: Attention,
) -> ir.Value:
    """Learned queries look at the patches [slices, patches, hidden]: [slices * queries, width]."""
    query = norm(graph, weights, "projector.norm_q", weights.array("projector.query"), RESAMPLER_NORM_EPSILON)
    if weights.has("projector.query_position"):
        query = graph.node("Add", query, weights.array("projector.query_position"))
    content = weights.linear(patches, "projector.kv")
    content = norm(graph, weights, "projector.norm_kv", content, RESAMPLER_NORM_EPSILON)
    key = graph.node("Add", content, position)
    query, key, content = weights.linear_parts((query, key, content), "projector.attention.qkv", "qkv")
    slices = graph.node("Shape", patches, start=0, end=1)
    query = graph.node("Expand", query, graph.node("Concat", slices, graph.constant([queries, width]), axis=0))
    attended = attention(graph, query, key, content, width // HEAD_WIDTH_OF_RESAMPLER, width)
    attended = weights.linear(attended, "projector.attention.o")
    normed = norm(graph, weights, "projector.norm_post", attended, RESAMPLER_NORM_EPSILON)
    return graph.node("Reshape", weights.linear(normed, "projector.out"), graph.constant([-1, width]))
