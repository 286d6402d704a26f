"""Emit the audio graph: the log-mel spectrogram of one segment -> audio features, one per audio token."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mcpmq.families.audio_shape import AudioShape
from mcpmq.families.family import Architecture
from mcpmq.families.whisper import inverse_timescales
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.vision import encoder_layer, layer_norm
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32


@dataclass(frozen=True, slots=True)
class Frames:
    """Encoder frames of a segment, float32 [chunks, frames, width], and the masks of attention between them."""

    values: ir.Value
    padding_mask: ir.Value | None = None  # int32 [chunks, frames]: 1 for frames of the audio
    bias: ir.Value | None = None  # float32 [1, 1, frames, frames]: 0 where a frame attends to another, else -inf

    def attend(self, graph: Graph, query: ir.Value, key: ir.Value, value: ir.Value, heads: int, _: int) -> ir.Value:
        """Emit attention over values [chunks, frames, width] as one contrib operator of ONNX Runtime."""
        masks = [None, self.padding_mask, self.bias]
        while masks[-1:] == [None]:
            masks.pop()
        return graph.contrib_node("MultiHeadAttention", query, key, value, *masks, num_heads=heads)


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit the graph for one segment of any length.

    Input: `input_features` float32 [1, mel bins, mel frames]. Output: `audio_features` float32 [audio tokens, hidden].
    """
    shape, width = architecture.required_audio, architecture.language.hidden_size
    mel = graph.input("input_features", FLOAT, [1, shape.num_mel_bins, "mel_frames"])
    length = _half(graph, graph.node("Add", graph.axis_length(mel, 2), graph.constant(1)))
    is_chunked = shape.kind == "qwen2.5-omni"
    frames = _chunks(graph, weights, shape, mel, length) if is_chunked else _sequence(graph, weights, shape, mel)
    value = frames.values
    for layer in progress(range(shape.num_layers), "writing the audio encoder"):
        value = encoder_layer(graph, weights, shape, f"audio.layers.{layer}", value, frames.attend)
    project = _pool_and_project if is_chunked else _project_and_pool
    graph.output(project(graph, weights, shape, value, length), "audio_features", FLOAT, ["audio_tokens", width])


def _chunks(graph: Graph, weights: WeightEmitter, shape: AudioShape, mel: ir.Value, length: ir.Value) -> Frames:
    """Cut the segment into chunks, which the convolutions, the positions and attention treat separately."""
    mel_frames, size = graph.axis_length(mel, 2), graph.constant(2 * shape.chunk_frames)
    count = graph.node("Div", graph.node("Add", mel_frames, graph.constant(2 * shape.chunk_frames - 1)), size)
    missing = graph.node("Sub", graph.node("Mul", count, size), mel_frames)
    pads = graph.node("Concat", graph.constant([0] * 5), _vector(graph, missing), axis=0)
    padded = graph.node("Pad", mel, pads)
    split = graph.node("Reshape", padded, graph.constant([shape.num_mel_bins, -1, 2 * shape.chunk_frames]))
    mask = _first_in_chunks(graph, count, 2 * shape.chunk_frames, mel_frames)
    mask = graph.node("Unsqueeze", graph.node("Cast", mask, to=FLOAT), graph.constant([1]))
    # The inputs of the second convolution are zero after the end of the audio, as after that of every chunk.
    value = graph.node("Mul", _convolve(graph, weights, 1, graph.node("Transpose", split, perm=[1, 0, 2])), mask)
    value = graph.node("Transpose", _convolve(graph, weights, 2, value), perm=[0, 2, 1])
    value = graph.node("Add", value, _sinusoids(graph, weights, shape))
    padding = graph.node("Cast", _first_in_chunks(graph, count, shape.chunk_frames, length), to=INT32)
    return Frames(value, padding_mask=padding)


def _sequence(graph: Graph, weights: WeightEmitter, shape: AudioShape, mel: ir.Value) -> Frames:
    """Convolve the whole segment, and let every frame attend to its chunk and to those before."""
    value = _convolve(graph, weights, 2, _convolve(graph, weights, 1, mel))
    value = graph.node("Transpose", value, perm=[0, 2, 1])
    count = graph.axis_length(value, 1)
    positions = weights.array("audio.position_embedding")
    value = graph.node("Add", value, _first(graph, positions, count))
    return Frames(value, bias=_chunk_bias(graph, shape.chunk_frames, count) if shape.chunk_frames else None)


def _convolve(graph: Graph, weights: WeightEmitter, number: int, value: ir.Value) -> ir.Value:
    """Convolve [segments, channels, frames] with one of the two kernels; the second halves the number of frames."""
    kernel, bias = weights.array(f"audio.conv{number}"), weights.vector(f"audio.conv{number}.bias")
    return graph.node("Gelu", graph.node("Conv", value, kernel, bias, pads=[1, 1], strides=[number]))


def _first_in_chunks(graph: Graph, count: ir.Value, size: int, length: ir.Value) -> ir.Value:
    """Return whether a frame is among the first `length` of all chunks: bool [chunks, size]."""
    total = graph.node("Mul", count, graph.constant(size))
    numbers = graph.node("Range", graph.constant(0), total, graph.constant(1))
    return graph.node("Reshape", graph.node("Less", numbers, length), graph.constant([-1, size]))


def _chunk_bias(graph: Graph, size: int, count: ir.Value) -> ir.Value:
    """Return 0 for frames of the same and of earlier chunks, and -inf for those of later ones."""
    numbers = graph.node("Range", graph.constant(0), count, graph.constant(1))
    chunk = graph.node("Div", numbers, graph.constant(size))
    row, column = (graph.node("Unsqueeze", chunk, graph.constant([axis])) for axis in (1, 0))
    values = graph.constant(-np.inf, np.float32), graph.constant(0, np.float32)
    return graph.node(
        "Unsqueeze", graph.node("Where", graph.node("Less", row, column), *values), graph.constant([0, 1])
    )


def _sinusoids(graph: Graph, weights: WeightEmitter, shape: AudioShape) -> ir.Value:
    """Return the position embeddings of one chunk, float32 [frames, width]: sines, then cosines."""
    frequencies = weights.constant(lambda: inverse_timescales(shape.hidden_size), shape.hidden_size // 2)
    position = graph.node("Range", graph.constant(0), graph.constant(shape.chunk_frames), graph.constant(1))
    position = graph.node("Unsqueeze", graph.node("Cast", position, to=FLOAT), graph.constant([1]))
    angles = graph.node("Mul", position, frequencies)
    return graph.node("Concat", graph.node("Sin", angles), graph.node("Cos", angles), axis=-1)


def _pool_and_project(
    graph: Graph, weights: WeightEmitter, shape: AudioShape, value: ir.Value, length: ir.Value
) -> ir.Value:
    pooled = _pool(graph, shape, value, shape.hidden_size, length)
    normed = layer_norm(graph, weights, "audio.post_norm", pooled, shape.norm_epsilon)
    return weights.linear(normed, "audio_projector.out")


def _project_and_pool(
    graph: Graph, weights: WeightEmitter, shape: AudioShape, value: ir.Value, length: ir.Value
) -> ir.Value:
    normed = layer_norm(graph, weights, "audio.post_norm", value, shape.norm_epsilon)
    hidden = graph.node("Relu", weights.linear(normed, "audio_projector.up"))
    projected = weights.linear(hidden, "audio_projector.down")
    return _pool(graph, shape, projected, weights.model.architecture.language.hidden_size, length)


def _pool(graph: Graph, shape: AudioShape, value: ir.Value, width: int, length: ir.Value) -> ir.Value:
    """Return the means of groups of the first `length` frames: [tokens, width]; the last frames may fill no group."""
    size = graph.constant(shape.pool_size)
    whole = graph.node("Mul", graph.node("Div", length, size), size)
    frames = _first(graph, graph.node("Reshape", value, graph.constant([-1, width])), whole)
    groups = graph.node("Reshape", frames, graph.constant([-1, shape.pool_size, width]))
    return graph.node("ReduceMean", groups, graph.constant([1]), keepdims=0)


def _first(graph: Graph, value: ir.Value, count: ir.Value) -> ir.Value:
    """Return the first `count` rows."""
    return graph.node("Slice", value, graph.constant([0]), _vector(graph, count), graph.constant([0]))


def _half(graph: Graph, value: ir.Value) -> ir.Value:
    return graph.node("Div", value, graph.constant(2))


def _vector(graph: Graph, value: ir.Value) -> ir.Value:
    """Return a scalar as a vector of length 1."""
    return graph.node("Unsqueeze", value, graph.constant([0]))
