"""Emit the vision graph of Gemma 3, SigLIP and a projector that averages patches: images -> image features."""

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionShape
from mcpmq.formats.onnx import vision
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.vision_tiles import embed_tiles
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for any number of images.

    Input: `pixel_values` float32 [images, 3, side, side]. Output: `image_features` float32 [images * tokens of an
    image, hidden].
    """
    shape, width = architecture.required_vision, architecture.language.hidden_size
    side = shape.slice_resolution
    value = embed_tiles(graph, weights, shape, graph.input("pixel_values", vision.FLOAT, ["images", 3, side, side]))
    for number in progress(range(shape.num_layers), "writing the vision encoder"):
        value = vision.encoder_layer(graph, weights, shape, f"vision.layers.{number}", value, vision.fused_attention)
    value = vision.layer_norm(graph, weights, "vision.post_norm", value, shape.norm_epsilon)
    scale = graph.node("Add", weights.vector("projector.norm"), graph.constant(1, np.float32))
    pooled = _average_squares(graph, shape, value)
    normed = graph.node("RMSNormalization", pooled, scale, axis=-1, epsilon=shape.norm_epsilon)
    graph.output(weights.linear(normed, "projector.out"), "image_features", vision.FLOAT, ["image_tokens", width])


def _average_squares(graph: Graph, shape: VisionShape, value: ir.Value) -> ir.Value:
    """Emit [images, patches, hidden] -> [tokens, hidden]: the mean of the patches of a square."""
    merge, side = shape.spatial_merge_size, shape.position_grid_size // shape.spatial_merge_size
    squares = graph.node("Reshape", value, graph.constant([-1, side, merge, side, merge, shape.hidden_size]))
    means = graph.node("ReduceMean", squares, graph.constant([2, 4]), keepdims=0)
    return graph.node("Reshape", means, graph.constant([-1, shape.hidden_size]))
