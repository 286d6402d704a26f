"""Emit the vision graph of a SigLIP encoder and a resampler: packed patches of slices -> image features."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mcpmq.families.audio_shape import AudioShape
from mcpmq.families.family import Architecture, VisionShape
from mcpmq.families.resampler import RESAMPLER_HEAD_DIM
from mcpmq.formats.onnx import interpolate
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress

if TYPE_CHECKING:
    import torch

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
RESAMPLER_NORM_EPSILON = 1e-6
WAVELENGTH = 10000.0
# Other kinds have the approximation with tanh.
EXACT_GELU_KINDS = ("timm-resampler", "internvit", "qwen2.5-omni", "minicpm-o")
Attention = Callable[[Graph, ir.Value, ir.Value, ir.Value, int, int], ir.Value]
"""(graph, queries, keys, values, number of heads, width of all heads) -> attention output."""


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for slices of any size; all slices of one call have the same number of patches.

    Inputs: `pixel_values` float32 [slices, 3, patch, patch * patches]; `tgt_sizes` int64 [slices, 2], rows and columns
    of patches. Output: `image_features` float32 [slices * queries, hidden].
    """
    shape, width = architecture.required_vision, architecture.language.hidden_size
    pixels = graph.input("pixel_values", FLOAT, ["slices", 3, shape.patch_size, "patches_times_patch"])
    sizes = graph.input("tgt_sizes", INT64, ["slices", 2])
    features = _features(graph, weights, architecture, pixels, sizes, fused_attention, progress)
    graph.output(features, "image_features", FLOAT, ["image_tokens", width])


def emit_static(
    graph: Graph, weights: WeightEmitter, architecture: Architecture, size: tuple[int, int], progress: Progress
) -> None:
    """Emit the graph for one slice of a fixed size (rows, columns) in patches, with standard operators only."""
    shape, width = architecture.required_vision, architecture.language.hidden_size
    pixels = graph.input("pixel_values", FLOAT, [1, 3, shape.patch_size, shape.patch_size * size[0] * size[1]])
    sizes = graph.constant([size])
    features = _features(graph, weights, architecture, pixels, sizes, _standard_attention, progress)
    graph.output(features, "image_features", FLOAT, [shape.num_queries, width])


def _features(
    graph: Graph,
    weights: WeightEmitter,
    architecture: Architecture,
    pixels: ir.Value,
    sizes: ir.Value,
    attention: Attention,
    progress: Progress,
) -> ir.Value:
    shape, width = architecture.required_vision, architecture.language.hidden_size
    value, row, column = embed_patches(graph, weights, shape, pixels, sizes)
    for number in progress(range(shape.num_layers), "writing the vision encoder"):
        value = encoder_layer(graph, weights, shape, f"vision.layers.{number}", value, attention)
    value = layer_norm(graph, weights, "vision.post_norm", value, shape.norm_epsilon)
    position = graph.node(
        "Concat", *(_sincos_embedding(graph, weights, axis, width // 2) for axis in (column, row)), axis=-1
    )
    return _resample(graph, weights, shape.num_queries, width, value, position, attention)


def fused_attention(graph: Graph, query: ir.Value, key: ir.Value, content: ir.Value, heads: int, _: int) -> ir.Value:
    """Emit attention over values [slices, tokens, width] as one contrib operator of ONNX Runtime."""
    return graph.contrib_node("MultiHeadAttention", query, key, content, num_heads=heads)


def _standard_attention(
    graph: Graph, query: ir.Value, key: ir.Value, content: ir.Value, heads: int, width: int
) -> ir.Value:
    """Emit attention in standard operators, which every accelerator supports."""
    split_heads, merge_heads = graph.constant([0, 0, heads, width // heads]), graph.constant([0, 0, width])
    query, key, content = (
        graph.node("Transpose", graph.node("Reshape", value, split_heads), perm=perm)
        for value, perm in ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (content, [0, 2, 1, 3]))
    )
    query = graph.node("Mul", query, graph.constant((width // heads) ** -0.5, np.float32))
    probabilities = graph.node("Softmax", graph.node("MatMul", query, key), axis=-1)
    mixed = graph.node("Transpose", graph.node("MatMul", probabilities, content), perm=[0, 2, 1, 3])
    return graph.node("Reshape", mixed, merge_heads)


def embed_patches(
    graph: Graph, weights: WeightEmitter, shape: VisionShape, pixels: ir.Value, sizes: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Emit the input of the first layer [slices, patches, hidden], and the row and column of every patch."""
    value = _patches(graph, weights, shape, pixels)
    row, column = coordinates(graph, value, sizes)
    return graph.node("Add", value, _position_embedding(graph, weights, shape, sizes, row, column)), row, column


def _patches(graph: Graph, weights: WeightEmitter, shape: VisionShape, pixels: ir.Value) -> ir.Value:
    """Emit [slices, 3, patch, patch * patches] -> [slices, patches, hidden]."""
    kernel, bias = weights.array("vision.patch_embedding"), weights.vector("vision.patch_embedding.bias")
    side = [shape.patch_size, shape.patch_size]
    embedded = graph.node("Conv", pixels, kernel, bias, kernel_shape=side, strides=side)
    return graph.node("Transpose", graph.node("Squeeze", embedded, graph.constant([2])), perm=[0, 2, 1])


def coordinates(graph: Graph, patches: ir.Value, sizes: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Emit the row and column of every patch in its slice: int64 [slices, patches] each."""
    numbers = graph.node("Range", graph.constant(0), graph.axis_length(patches, 1), graph.constant(1))
    columns = _side(graph, sizes, 1)
    return graph.node("Div", numbers, columns), graph.node("Mod", numbers, columns)


def _side(graph: Graph, sizes: ir.Value, axis: int) -> ir.Value:
    """Emit the rows (axis 0) or columns (axis 1) of every slice: int64 [slices, 1]."""
    return graph.node("Gather", sizes, graph.constant([axis]), axis=1)


def _position_embedding(
    graph: Graph, weights: WeightEmitter, shape: VisionShape, sizes: ir.Value, row: ir.Value, column: ir.Value
) -> ir.Value:
    """Look up the embedding of the nearest table cell, in integers: float rounding could select another cell."""
    if shape.kind == "timm-resampler":
        return interpolate.position_embedding(graph, weights, shape, (row, column), sizes, interpolate.cubic)
    if shape.flat_positions:
        number = graph.node("Add", graph.node("Mul", row, _side(graph, sizes, 1)), column)
        cell = _cell(graph, number, graph.axis_length(row, 1), shape.position_grid_size)
        return weights.lookup("vision.position_embedding", cell)
    cell_row = _cell(graph, row, _side(graph, sizes, 0), shape.position_grid_size)
    cell_column = _cell(graph, column, _side(graph, sizes, 1), shape.position_grid_size)
    cell = graph.node("Add", graph.node("Mul", cell_row, graph.constant(shape.position_grid_size)), cell_column)
    return weights.lookup("vision.position_embedding", cell)


def _cell(graph: Graph, index: ir.Value, length: ir.Value, grid: int) -> ir.Value:
    return graph.node("Div", graph.node("Mul", index, graph.constant(grid)), length)


def encoder_layer(
    graph: Graph,
    weights: WeightEmitter,
    shape: VisionShape | AudioShape,
    name: str,
    value: ir.Value,
    attention: Attention,
) -> ir.Value:
    """Emit one layer of a SigLIP or Whisper encoder: [slices, patches, hidden] -> [slices, patches, hidden]."""
    normed = layer_norm(graph, weights, f"{name}.norm1", value, shape.norm_epsilon)
    query, key, content = project(weights, normed, f"{name}.attention")
    attended = attention(graph, query, key, content, shape.num_heads, shape.hidden_size)
    attended = _scaled(graph, weights, f"{name}.attention.scale", weights.linear(attended, f"{name}.attention.o"))
    value = graph.node("Add", value, attended)
    normed = layer_norm(graph, weights, f"{name}.norm2", value, shape.norm_epsilon)
    gelu = "none" if shape.kind in EXACT_GELU_KINDS else "tanh"
    activated = graph.node("Gelu", weights.linear(normed, f"{name}.mlp.up"), approximate=gelu)
    output = _scaled(graph, weights, f"{name}.mlp.scale", weights.linear(activated, f"{name}.mlp.down"))
    return graph.node("Add", value, output)


def _scaled(graph: Graph, weights: WeightEmitter, name: str, value: ir.Value) -> ir.Value:
    """Multiply by one factor per channel in models that have them (LayerScale)."""
    return graph.node("Mul", value, weights.vector(name)) if weights.has(name) else value


def project(weights: WeightEmitter, value: ir.Value, name: str) -> tuple[ir.Value, ...]:
    """Emit queries, keys and values, from one fused matrix or from three."""
    if weights.has(f"{name}.qkv"):
        return weights.linear_split([value] * 3, f"{name}.qkv", "qkv")
    return tuple(weights.linear(value, f"{name}.{part}") for part in "qkv")


def layer_norm(graph: Graph, weights: WeightEmitter, name: str, value: ir.Value, epsilon: float) -> ir.Value:
    """Emit a layer norm with scale and bias."""
    parts = weights.vector(name), weights.vector(f"{name}.bias")
    return graph.node("LayerNormalization", value, *parts, axis=-1, epsilon=epsilon)


def _sincos_embedding(graph: Graph, weights: WeightEmitter, coordinate: ir.Value, width: int) -> ir.Value:
    """Emit sine, then cosine of a coordinate [slices, patches] at decreasing frequencies: [slices, patches, width]."""
    frequencies = weights.constant(lambda: sincos_frequencies(width), width // 2)
    position = graph.node("Cast", graph.node("Unsqueeze", coordinate, graph.constant([-1])), to=FLOAT)
    angles = graph.node("Mul", position, frequencies)
    return graph.node("Concat", graph.node("Sin", angles), graph.node("Cos", angles), axis=-1)


def sincos_frequencies(width: int) -> "torch.Tensor":
    """Return the radians per patch, float32 [width / 2], with the rounding of the torch model."""
    import torch  # a forecast emits this graph without it

    exponents: torch.Tensor = torch.arange(width // 2, dtype=torch.float32) / (width / 2)
    return WAVELENGTH**-exponents


def _resample(
    graph: Graph,
    weights: WeightEmitter,
    queries: int,
    width: int,
    patches: ir.Value,
    position: ir.Value,
    attention: Attention,
) -> ir.Value:
    """Attend from learned queries to patches [slices, patches, hidden]: [slices * queries, width]."""
    query = layer_norm(graph, weights, "projector.norm_q", weights.array("projector.query"), RESAMPLER_NORM_EPSILON)
    if weights.has("projector.query_position"):
        query = graph.node("Add", query, weights.array("projector.query_position"))
    content = weights.linear(patches, "projector.kv")
    content = layer_norm(graph, weights, "projector.norm_kv", content, RESAMPLER_NORM_EPSILON)
    key = graph.node("Add", content, position)
    query, key, content = weights.linear_split((query, key, content), "projector.attention.qkv", "qkv")
    slices = graph.node("Shape", patches, start=0, end=1)
    query = graph.node("Expand", query, graph.node("Concat", slices, graph.constant([queries, width]), axis=0))
    attended = attention(graph, query, key, content, width // RESAMPLER_HEAD_DIM, width)
    attended = weights.linear(attended, "projector.attention.o")
    normed = layer_norm(graph, weights, "projector.norm_post", attended, RESAMPLER_NORM_EPSILON)
    return graph.node("Reshape", weights.linear(normed, "projector.out"), graph.constant([-1, width]))
