"""The graphs of a model and their file names: the layout that transformers.js loads."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from mcpmq.families.family import Architecture, VisionKind
from mcpmq.formats.model_view import ModelView
from mcpmq.formats.onnx import (
    audio,
    decoder,
    embedding,
    linear_attention,
    short_convolution,
    vision,
    vision_internvit,
    vision_merger,
    vision_naflex,
    vision_pooled,
    vision_qwenvl,
    vision_tiles,
)
from mcpmq.formats.onnx.block_quant import ACCURACY_LEVEL, block_size
from mcpmq.formats.onnx.external_data import DataSink, ExternalData, SharingSink
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.plan import TensorPlan
from mcpmq.scheme import IntegerScheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # a forecast emits graphs without torch
    from mcpmq.dataset import SampleSet
    from mcpmq.quantized_model import QuantizedModel

FOLDER = "onnx"
VISION, AUDIO = "vision+projector", "audio+audio_projector"
MIN_RUNTIME = "1.24"  # the first ONNX Runtime with every operator in use, 8-bit blocks among them
# Dtype names and file name suffixes of transformers.js, which has none for bfloat16.
FLOAT32 = ("fp32", "")
DTYPE_NAMES = {
    "int4": ("q4", "_q4"),
    "int8": ("q8", "_quantized"),
    "f16": ("fp16", "_fp16"),
    "float16": ("fp16", "_fp16"),
}
Emit = Callable[[Graph, WeightEmitter, Architecture, Progress], None]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One of the graphs of a model."""

    component: str
    stem: str
    components: tuple[str, ...]  # of the model, in this graph
    emit: Emit


VISION_EMITTERS: dict[VisionKind, Emit] = {
    "siglip-resampler": vision.emit,
    "timm-resampler": vision.emit,
    "siglip-merger": vision_merger.emit,
    "siglip-tiles": vision_tiles.emit,
    "siglip-pooled": vision_pooled.emit,
    "siglip-naflex": vision_naflex.emit,
    "internvit": vision_internvit.emit,
    "qwen2-vl": vision_qwenvl.emit,
    "qwen2.5-vl": vision_qwenvl.emit,
    "qwen2.5-omni": vision_qwenvl.emit,
    "qwen3-vl": vision_qwenvl.emit,
}


def graph_specs(architecture: Architecture) -> tuple[GraphSpec, ...]:
    """Return the graphs of a model: the encoders that it has, embedding, decoder."""
    shape = architecture.vision
    encoder = (
        [GraphSpec(VISION, "vision_encoder", ("vision", "projector"), VISION_EMITTERS[shape.kind])] if shape else []
    )
    if architecture.audio:
        encoder.append(GraphSpec(AUDIO, "audio_encoder", ("audio", "audio_projector"), audio.emit))
    return (
        *encoder,
        GraphSpec("embedding", "embed_tokens", ("embedding",), embedding.emit),
        GraphSpec("language", "decoder_model_merged", ("language", "head"), decoder.emit),
    )


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """The files of one graph, named relative to `FOLDER`."""

    stem: str
    graph_file: str
    data_files: tuple[str, ...]
    dtype_name: str  # of most weights, in transformers.js's terms

    @property
    def files(self) -> list[str]:
        return [f"{FOLDER}/{name}" for name in (self.graph_file, *self.data_files)]


def write_graph(
    spec: GraphSpec,
    quantized: "QuantizedModel",
    folder: Path,
    written: Mapping[str, GraphFiles],
    accuracy_level: int,
    progress: Progress,
) -> GraphFiles:
    """Write one graph and its weights into `folder`, which has the graphs `written`, by component."""
    from mcpmq.formats.onnx.weight_values import LoadedValues

    data = ExternalData(folder, data_file_name(spec, quantized))
    graph = Graph(spec.stem, sharing_sink(spec, quantized, data, written))
    size = padded_intermediate_size(quantized)
    weights = WeightEmitter(quantized, graph, LoadedValues(quantized), size, accuracy_level)
    return emit_graph(spec, quantized, folder, weights, progress)


def emit_graph(
    spec: GraphSpec, model: ModelView, folder: Path, weights: WeightEmitter, progress: Progress
) -> GraphFiles:
    """Write one graph into `folder`, and its weights into its data sink."""
    graph = weights.graph
    with closing(graph.data):
        spec.emit(graph, weights, model.architecture, progress)
        graph.data.finish()
    name = data_file_name(spec, model).removesuffix("_data")
    graph.save(folder / name, version("mcpmq"), _properties(spec, model, weights.accuracy_level))
    return GraphFiles(spec.stem, name, tuple(graph.data.files), dtype_names(spec, model)[0])


def sharing_sink(spec: GraphSpec, model: ModelView, data: DataSink, written: Mapping[str, GraphFiles]) -> DataSink:
    """Return the data sink of a graph: that of the decoder refers to the embedding's arrays if they are shared."""
    if spec.component != "language" or not shares_embedding(model):
        return data
    graph = ir.load(data.folder / written["embedding"].graph_file).graph
    tensors = {name: value.const_value for name, value in graph.initializers.items()}
    return SharingSink(data, {name: one for name, one in tensors.items() if isinstance(one, ir.ExternalTensor)})


def shares_embedding(model: ModelView) -> bool:
    """Return whether the decoder has the arrays of the embedding: as requested, and of a tied table with groups.

    Floats are transposed in the decoder, and its blocks are padded if the scheme has one scale per row.
    """
    scheme, is_tied = model.scheme("embedding"), model.architecture.language.tied_embeddings
    is_requested = model.artifact.manifest.recipe.get("onnx_embedding") == "shared"
    return is_requested and is_tied and isinstance(scheme, IntegerScheme) and bool(scheme.group_size)


def data_file_name(spec: GraphSpec, model: ModelView) -> str:
    """Return the name of the first file of a graph's weights."""
    return f"{spec.stem}{dtype_names(spec, model)[1]}.onnx_data"


def write_static_vision(
    spec: GraphSpec, quantized: "QuantizedModel", samples: "SampleSet", folder: Path, progress: Progress
) -> GraphFiles:
    """Write the vision graph for NPUs, calibrated on the images of `samples`."""
    from mcpmq.formats.onnx import qnn  # its quantizer takes a second to import

    dtype_name, suffix = DTYPE_NAMES["int8"]
    name = f"{spec.stem}{suffix}.onnx"
    with closing(ExternalData(folder, f"{name}_data")) as data:
        qnn.write(quantized, samples, folder / name, data, _properties(spec, quantized, 0), progress)
        data.finish()
    return GraphFiles(spec.stem, name, tuple(data.files), dtype_name)


def padded_intermediate_size(model: ModelView) -> int:
    """Return the vision FFN's intermediate size in the file: whole blocks, which fast kernels (KleidiAI) require."""
    shape = model.architecture.vision
    if shape is None:
        return 0
    schemes = [one.scheme for one in model.tensors if one.spec.paddable_axis == "columns" and not one.activation]
    block = max((block_size(scheme) for scheme in schemes if isinstance(scheme, IntegerScheme)), default=1)
    return -(-shape.intermediate_size // block) * block


def dtype_names(spec: GraphSpec, model: ModelView) -> tuple[str, str]:
    """Return transformers.js's names of the dtype of most weights in a graph: of the session, of the file."""
    counts: Counter[str] = Counter()
    for tensor in _tensors(spec, model):
        scheme = tensor.scheme
        dtype = f"int{scheme.bits}" if isinstance(scheme, IntegerScheme) else str(scheme or tensor.dtype)
        counts[dtype] += prod(tensor.spec.shape)
    return DTYPE_NAMES.get(counts.most_common(1)[0][0], FLOAT32)


def _tensors(spec: GraphSpec, model: ModelView) -> list[TensorPlan]:
    return [tensor for tensor in model.tensors if tensor.spec.component in spec.components]


def _properties(spec: GraphSpec, model: ModelView, accuracy_level: int) -> dict[str, str]:
    manifest, matrices = model.artifact.manifest, [one for one in _tensors(spec, model) if one.spec.role == "matrix"]
    has_integers = any(isinstance(matrix.scheme, IntegerScheme) for matrix in matrices)
    return {
        "component": spec.component,
        "source_sha256": manifest.source.sha256,
        "recipe": json.dumps(manifest.recipe, sort_keys=True),
        "activations": "int8" if has_integers and accuracy_level == ACCURACY_LEVEL else "float32",
        "min_onnxruntime": _min_runtime(spec, model),
    }


def _min_runtime(spec: GraphSpec, model: ModelView) -> str:
    shape = model.architecture.language
    if spec.component != "language":
        return MIN_RUNTIME
    if shape.short_convolution:
        return short_convolution.MIN_RUNTIME
    return linear_attention.MIN_RUNTIME if shape.linear_attention else MIN_RUNTIME
