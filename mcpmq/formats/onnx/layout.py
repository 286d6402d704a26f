"""Which files a model becomes and what they are called: the layout that transformers.js loads."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.families.family import Architecture, VisionKind
from mcpmq.formats.model_view import Declared
from mcpmq.formats.onnx import decoder, embedding, linear_attention, vision, vision_merger, vision_qwenvl
from mcpmq.formats.onnx.block_quant import block_columns
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.formats.onnx.graph import ACCURACY_LEVEL, Graph
from mcpmq.formats.onnx.weight_source import Weights
from mcpmq.plan import Step
from mcpmq.scheme import IntegerScheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # a forecast emits graphs without torch
    from mcpmq.dataset import CalibrationSet
    from mcpmq.quantized_model import Quantized

FOLDER = "onnx"
SIGHT = "vision+projector"
LEAST_RUNTIME = "1.24"  # the first ONNX Runtime that computes every operator used, 8-bit blocks among them
# What transformers.js calls a type, and how the names of its files end; it has no word for bfloat16.
FLOAT32 = ("fp32", "")
NAMES = {"int4": ("q4", "_q4"), "int8": ("q8", "_quantized"), "f16": ("fp16", "_fp16"), "float16": ("fp16", "_fp16")}


@dataclass(frozen=True, slots=True)
class Part:
    """One of the three graphs."""

    component: str
    stem: str
    holds: tuple[str, ...]  # components of the model
    emit: Callable[[Graph, Weights, Architecture, Progress], None]


TOWERS: dict[VisionKind, Callable[[Graph, Weights, Architecture, Progress], None]] = {
    "siglip-resampler": vision.emit,
    "timm-resampler": vision.emit,
    "siglip-merger": vision_merger.emit,
    "qwen2-vl": vision_qwenvl.emit,
    "qwen2.5-vl": vision_qwenvl.emit,
    "qwen3-vl": vision_qwenvl.emit,
}


def parts_of(architecture: Architecture) -> tuple[Part, ...]:
    """The graphs of a model; one that reads text only has no first."""
    seeing = architecture.vision
    tower = [Part(SIGHT, "vision_encoder", ("vision", "projector"), TOWERS[seeing.kind])] if seeing else []
    return (
        *tower,
        Part("embedding", "embed_tokens", ("embedding",), embedding.emit),
        Part("language", "decoder_model_merged", ("language", "head"), decoder.emit),
    )


@dataclass(frozen=True, slots=True)
class Written:
    """One graph on disk."""

    stem: str
    graph: str  # file names in the folder of graphs
    chunks: tuple[str, ...]
    type_name: str  # of most numbers, in transformers.js's words

    @property
    def files(self) -> list[str]:
        return [f"{FOLDER}/{name}" for name in (self.graph, *self.chunks)]


def write_part(part: Part, quantized: "Quantized", folder: Path, accuracy_level: int, progress: Progress) -> Written:
    """Write one graph and its weights into the folder of graphs."""
    from mcpmq.formats.onnx.weights import Weights as ReadWeights

    graph = Graph(part.stem, ExternalData(folder, data_name(part, quantized)))
    weights = ReadWeights(quantized, graph, accuracy_level, widened_ffn(quantized))
    return emit_part(part, quantized, folder, graph, weights, accuracy_level, progress)


def emit_part(
    part: Part,
    model: Declared,
    folder: Path,
    graph: Graph,
    weights: Weights,
    accuracy_level: int,
    progress: Progress,
) -> Written:
    """Write one graph into the folder of graphs; its weights go where the graph has them."""
    with closing(graph.data):
        part.emit(graph, weights, model.architecture, progress)
    name = data_name(part, model).removesuffix("_data")
    graph.save(folder / name, version("mcpmq"), _properties(part, model, accuracy_level))
    return Written(part.stem, name, tuple(graph.data.files), type_names(part, model)[0])


def data_name(part: Part, model: Declared) -> str:
    """The first file of a graph's weights."""
    return f"{part.stem}{type_names(part, model)[1]}.onnx_data"


def write_static_vision(
    part: Part, quantized: "Quantized", samples: "CalibrationSet", folder: Path, progress: Progress
) -> Written:
    """The same for the vision graph that NPUs take."""
    from mcpmq.formats.onnx import qnn  # its quantizer takes a second to import

    type_name, suffix = NAMES["int8"]
    name = f"{part.stem}{suffix}.onnx"
    with closing(ExternalData(folder, f"{name}_data")) as data:
        qnn.write(quantized, samples, folder / name, data, _properties(part, quantized, 0), progress)
    return Written(part.stem, name, tuple(data.files), type_name)


def widened_ffn(quantized: Declared) -> int:
    """The hidden width of the vision FFN in the file: whole blocks, for fast kernels (KleidiAI) take no ragged ones."""
    shape = quantized.architecture.vision
    if shape is None:
        return 0
    blockwise = [step.scheme for step in quantized.steps if step.spec.may_grow == "columns" and not step.activation]
    block = max((block_columns(scheme) for scheme in blockwise if isinstance(scheme, IntegerScheme)), default=1)
    return -(-shape.ffn // block) * block


def type_names(part: Part, quantized: Declared) -> tuple[str, str]:
    """The type that most numbers of a graph have, in transformers.js's words: of the session, of the file."""
    numbers: Counter[str] = Counter()
    for step in _steps(part, quantized):
        kind = f"int{step.scheme.bits}" if isinstance(step.scheme, IntegerScheme) else str(step.scheme or step.dtype)
        numbers[kind] += prod(step.spec.shape)
    return NAMES.get(numbers.most_common(1)[0][0], FLOAT32)


def _steps(part: Part, quantized: Declared) -> list[Step]:
    return [step for step in quantized.steps if step.spec.component in part.holds]


def _properties(part: Part, quantized: Declared, accuracy_level: int) -> dict[str, str]:
    manifest = quantized.artifact.manifest
    integer = any(
        isinstance(step.scheme, IntegerScheme) for step in _steps(part, quantized) if step.spec.role == "matrix"
    )
    return {
        "component": part.component,
        "source_sha256": manifest.source.sha256,
        "recipe": json.dumps(manifest.recipe, sort_keys=True),
        "activations": "int8" if integer and accuracy_level == ACCURACY_LEVEL else "float32",
        "min_onnxruntime": _least_runtime(part, quantized),
    }


def _least_runtime(part: Part, quantized: Declared) -> str:
    linear = part.component == "language" and quantized.architecture.language.linear
    return linear_attention.LEAST_RUNTIME if linear else LEAST_RUNTIME
