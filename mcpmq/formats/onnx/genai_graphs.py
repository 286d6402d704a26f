"""Graphs of ONNX Runtime GenAI: variants of the graphs of a model, which share the external data of these."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike

from mcpmq.families.family import VisionKind
from mcpmq.formats.onnx.graph import Axes
from mcpmq.formats.onnx.masks import TOKEN_TYPES

COMPONENT = "genai"  # of the artifact
PREFIX = "genai_"  # of files and values; transformers.js selects graphs by the whole name of a file
INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
AXES = "batch_size", "sequence_length"  # of token ids
Change = Callable[[ir.Graph], None]


def write_variant(graph: Path, change: Change) -> str:
    """Write a changed copy of a graph beside it, without its weights; return the name of the file."""
    model = ir.load(graph)
    change(model.graph)
    variant = graph.with_name(PREFIX + graph.name)
    ir.save(model, variant)
    return variant.name


def move_variant(variant: Path, graph: Path) -> None:
    """Write a variant beside a copy of its graph whose weights are in other files or at other offsets."""
    model, weights = ir.load(variant), ir.load(graph).graph.initializers
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = weights[name].const_value
    ir.save(model, graph.with_name(variant.name))


def insert_image_features(graph: ir.Graph, image_token: int, *, separate: bool) -> None:
    """Replace the embeddings of image tokens by the input `image_features`, float32 [image tokens, width], in order.

    GenAI passes no features after the prompt, and none for text: then the embeddings are those of the tokens. Features
    of `separate` images are [images, tokens, width], and [0, width] if there are none, so their input has no shape.
    """
    [tokens], [embeddings] = graph.inputs, graph.outputs
    width = _static(embeddings, -1)
    given = _input(graph, "image_features", FLOAT, None if separate else ["image_tokens", width])
    features = _node(graph, "Reshape", given, _constant(graph, "width", [-1, width]))
    is_image = _node(graph, "Equal", tokens, _constant(graph, "image_token", image_token))
    places = _node(graph, "Transpose", _node(graph, "NonZero", is_image), perm=[1, 0])
    count = _node(graph, "Shape", features, end=1)
    used = _node(graph, "Slice", places, _constant(graph, "first", [0]), count)
    merged = _node(graph, "ScatterND", embeddings, used, features)
    _replace_output(graph, merged, [*AXES, width])


def keep_last_logits(graph: ir.Graph, image_token: int) -> None:
    """Compute the logits of the last token only, and find the image tokens by their id.

    GenAI expects the last logits alone if their axis has the constant length 1. It has no input for the places
    of image tokens, but it passes token ids to a decoder with `input_ids`.
    """
    inputs, logits = {value.name: value for value in graph.inputs}, graph.outputs[0]
    count = inputs["num_logits_to_keep"]
    graph.inputs.remove(count)
    count.const_value = ir.Tensor(np.array(1, np.int64), name=count.name)
    graph.register_initializer(count)
    logits.shape = ir.Shape([AXES[0], 1, _static(logits, -1)])
    if TOKEN_TYPES in inputs:
        _derive_token_types(graph, inputs[TOKEN_TYPES], image_token)


def _derive_token_types(graph: ir.Graph, types: ir.Value, image_token: int) -> None:
    """Replace the input for token types by a comparison of token ids."""
    graph.inputs.remove(types)
    del graph.initializers[TOKEN_TYPES]
    tokens = _input(graph, "input_ids", INT64, [*AXES])
    first, users, before = graph.node(0), list(types.uses()), len(graph)
    is_image = _node(graph, "Equal", tokens, _constant(graph, "image_token", image_token))
    numbers = _node(graph, "Cast", is_image, to=INT64)
    for node, index in users:
        node.replace_input_with(index, numbers)
    added = list(graph)[before:]
    graph.remove(added)
    graph.insert_before(first, added)


def _rename_grid(graph: ir.Graph) -> None:
    """GenAI has one name for the grids of all Qwen-VL models."""
    for value in graph.inputs:
        if value.name == "grid_thw":
            value.name = "image_grid_thw"


def _separate_images(graph: ir.Graph) -> None:
    """GenAI counts the tokens of one image, and the images if the features have an axis for them."""
    [pixels], [features] = graph.inputs, graph.outputs
    width = _static(features, -1)
    images = _node(graph, "Shape", pixels, end=1)
    shape = _node(graph, "Concat", images, _constant(graph, "width", [-1, width]), axis=0)
    separate = _node(graph, "Reshape", features, shape)
    _replace_output(graph, separate, ["images", "tokens", width])


def _widen_mask(graph: ir.Graph) -> None:
    """GenAI passes the padding mask as int64; the graph does not use it, because its slices have no padding."""
    for value in graph.inputs:
        if value.name == "pixel_attention_mask":
            value.dtype = INT64


VISION_CHANGES: Mapping[VisionKind, Change] = {
    "qwen2-vl": _rename_grid,
    "siglip-pooled": _separate_images,
    "siglip-naflex": _widen_mask,
}


def _replace_output(graph: ir.Graph, value: ir.Value, axes: Axes) -> None:
    """Make a value the only output, with the name and type of the earlier one."""
    [output] = graph.outputs
    value.type, value.shape = output.type, ir.Shape(axes)
    value.name, output.name = output.name, f"{PREFIX}{output.name}"
    graph.outputs[0] = value


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, axes: Axes | None = None) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=None if axes is None else ir.Shape(axes))
    graph.inputs.append(value)
    return value


def _node(graph: ir.Graph, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
    name = f"{PREFIX}{operator}_{len(graph)}"
    node = ir.node(operator, inputs, attributes=attributes, name=name)
    node.outputs[0].name = f"{name}.0"
    graph.append(node)
    return node.outputs[0]


def _constant(graph: ir.Graph, name: str, value: ArrayLike) -> ir.Value:
    tensor = ir.Tensor(np.asarray(value, np.int64), name=PREFIX + name)
    constant = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(INT64), shape=tensor.shape)
    graph.register_initializer(constant)
    return constant


def _static(value: ir.Value, axis: int) -> int:
    """Return the length of an axis that is not dynamic."""
    assert value.shape is not None
    length = value.shape[axis]
    assert isinstance(length, int)
    return length
