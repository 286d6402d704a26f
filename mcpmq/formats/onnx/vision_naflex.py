"""Emit the vision graph of LFM2-VL, SigLIP2 on slices of any aspect ratio and a projector: slices -> image features."""

import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx import interpolate, vision
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress

INT64, INT32 = ir.DataType.INT64, ir.DataType.INT32
PROJECTOR_NORM_EPSILON = 1e-5


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for slices of one size.

    Inputs: `pixel_values` float32 [slices, patches, values of a patch]; `pixel_attention_mask` int32 [slices, patches],
    which has no effect, because slices of one size have no padding; `spatial_shapes` int64 [slices, 2], rows and
    columns of patches, in multiples of the side of a token.
    Output: `image_features` float32 [slices * tokens of a slice, hidden].
    """
    shape, width = architecture.required_vision, architecture.language.hidden_size
    values = 3 * shape.patch_size**2
    pixels = graph.input("pixel_values", vision.FLOAT, ["slices", "patches", values])
    graph.input("pixel_attention_mask", INT32, ["slices", "patches"])
    sizes = graph.input("spatial_shapes", INT64, ["slices", 2])
    value = _embed(graph, weights, shape, pixels, sizes)
    for number in progress(range(shape.num_layers), "writing the vision encoder"):
        value = vision.encoder_layer(graph, weights, shape, f"vision.layers.{number}", value, vision.fused_attention)
    value = vision.layer_norm(graph, weights, "vision.post_norm", value, shape.norm_epsilon)
    squares = _merge_squares(graph, shape, value, sizes)
    if shape.projector_norm:
        squares = vision.layer_norm(graph, weights, "projector.norm", squares, PROJECTOR_NORM_EPSILON)
    hidden = graph.node("Gelu", weights.linear(squares, "projector.up"))
    graph.output(weights.linear(hidden, "projector.down"), "image_features", vision.FLOAT, ["image_tokens", width])


def _embed(graph: Graph, weights: WeightEmitter, shape: VisionShape, pixels: ir.Value, sizes: ir.Value) -> ir.Value:
    """Emit the input of the first layer: [slices, patches, hidden]."""
    matrix = graph.node("Transpose", weights.array("vision.patch_embedding"), perm=[1, 0])
    bias = weights.vector("vision.patch_embedding.bias")
    patches = graph.node("Add", graph.node("MatMul", pixels, matrix), bias)
    coordinates = vision.coordinates(graph, patches, sizes)
    positions = interpolate.position_embedding(graph, weights, shape, coordinates, sizes, interpolate.linear)
    return graph.node("Add", patches, positions)


def _merge_squares(graph: Graph, shape: VisionShape, value: ir.Value, sizes: ir.Value) -> ir.Value:
    """Emit [slices, patches, hidden] -> [tokens, square * hidden]: the patches of a square side by side."""
    merge, hidden = shape.spatial_merge_size, shape.hidden_size
    first = graph.node("Gather", sizes, graph.constant([0]), axis=0)  # slices of a call have one size
    tokens = graph.node("Div", first, graph.constant(merge))
    rows, columns = (graph.node("Gather", tokens, graph.constant([axis]), axis=1) for axis in (0, 1))
    parts = (graph.constant([[-1]]), rows, graph.constant([[merge]]), columns, graph.constant([[merge * hidden]]))
    split = graph.node(
        "Reshape", value, graph.node("Squeeze", graph.node("Concat", *parts, axis=1), graph.constant([0]))
    )
    grouped = graph.node("Transpose", split, perm=[0, 1, 3, 2, 4])
    return graph.node("Reshape", grouped, graph.constant([-1, merge * merge * hidden]))
