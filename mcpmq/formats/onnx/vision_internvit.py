"""Emit the vision graph of InternVL, InternViT on tiles and a projector: tiles of images -> image features."""

import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx import vision
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.vision_tiles import merge_squares
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress

PROJECTOR_NORM_EPSILON = 1e-5


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for any number of tiles.

    Input: `pixel_values` float32 [tiles, 3, side, side]. Output: `image_features` float32 [tiles * tokens of a tile,
    hidden].
    """
    shape, width = architecture.required_vision, architecture.language.hidden_size
    side = shape.slice_resolution
    value = _embed(graph, weights, shape, graph.input("pixel_values", vision.FLOAT, ["tiles", 3, side, side]))
    for number in progress(range(shape.num_layers), "writing the vision encoder"):
        value = vision.encoder_layer(graph, weights, shape, f"vision.layers.{number}", value, vision.fused_attention)
    patches = graph.node("Slice", value, *(graph.constant([one]) for one in (1, 2**31 - 1, 1)))
    squares = merge_squares(graph, shape, patches)
    normed = vision.layer_norm(graph, weights, "projector.norm", squares, PROJECTOR_NORM_EPSILON)
    hidden = graph.node("Gelu", weights.linear(normed, "projector.up"))
    graph.output(weights.linear(hidden, "projector.down"), "image_features", vision.FLOAT, ["image_tokens", width])


def _embed(graph: Graph, weights: WeightEmitter, shape: VisionShape, pixels: ir.Value) -> ir.Value:
    """Emit [tiles, 3, side, side] -> [tiles, 1 + patches, hidden]; the class embedding is first."""
    kernel, bias = weights.array("vision.patch_embedding"), weights.vector("vision.patch_embedding.bias")
    stride = [shape.patch_size, shape.patch_size]
    embedded = graph.node("Conv", pixels, kernel, bias, kernel_shape=stride, strides=stride)
    patches = graph.node("Transpose", graph.node("Reshape", embedded, graph.constant([0, 0, -1])), perm=[0, 2, 1])
    tiles = graph.node("Shape", pixels, start=0, end=1)
    repeated = graph.node("Concat", tiles, graph.constant([1, shape.hidden_size]), axis=0)
    first = graph.node("Expand", weights.array("vision.class_embedding"), repeated)
    return graph.node("Add", graph.node("Concat", first, patches, axis=1), weights.array("vision.position_embedding"))
