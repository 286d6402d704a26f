"""Emit the vision graph of SmolVLM, SigLIP on tiles and a connector: tiles of images -> image features."""

import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx import vision
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for any number of tiles.

    Inputs: `pixel_values` float32 [batch, tiles, 3, side, side]; `pixel_attention_mask` bool [batch, tiles, side,
    side], which transformers.js passes and which has no effect, because a tile has no padding.
    Output: `image_features` float32 [batch * tiles * tokens of a tile, hidden].
    """
    shape, width = architecture.required_vision, architecture.language.hidden_size
    side = shape.slice_resolution
    pixels = graph.input("pixel_values", vision.FLOAT, ["batch_size", "num_images", 3, side, side])
    graph.input("pixel_attention_mask", ir.DataType.BOOL, ["batch_size", "num_images", side, side])
    value = embed_tiles(graph, weights, shape, graph.node("Reshape", pixels, graph.constant([-1, 3, side, side])))
    for number in progress(range(shape.num_layers), "writing the vision encoder"):
        value = vision.encoder_layer(graph, weights, shape, f"vision.layers.{number}", value, vision.fused_attention)
    value = vision.layer_norm(graph, weights, "vision.post_norm", value, shape.norm_epsilon)
    features = weights.linear(merge_squares(graph, shape, value), "projector.out")
    graph.output(features, "image_features", vision.FLOAT, ["image_tokens", width])


def embed_tiles(graph: Graph, weights: WeightEmitter, shape: VisionShape, pixels: ir.Value) -> ir.Value:
    """Emit [tiles, 3, side, side] -> [tiles, patches, hidden]; every tile has all positions."""
    kernel, bias = weights.array("vision.patch_embedding"), weights.vector("vision.patch_embedding.bias")
    stride = [shape.patch_size, shape.patch_size]
    embedded = graph.node("Conv", pixels, kernel, bias, kernel_shape=stride, strides=stride)
    flat = graph.node("Reshape", embedded, graph.constant([0, 0, -1]))
    patches = graph.node("Transpose", flat, perm=[0, 2, 1])
    return graph.node("Add", patches, weights.array("vision.position_embedding"))


def merge_squares(graph: Graph, shape: VisionShape, value: ir.Value) -> ir.Value:
    """Emit [tiles, patches, hidden] -> [tokens, square * hidden]: the patches of a square side by side."""
    merge, hidden = shape.spatial_merge_size, shape.hidden_size
    side = shape.position_grid_size // merge
    split = graph.node("Reshape", value, graph.constant([-1, side, merge, side, merge * hidden]))
    grouped = graph.node("Transpose", split, perm=[0, 1, 3, 2, 4])
    return graph.node("Reshape", grouped, graph.constant([-1, merge * merge * hidden]))
