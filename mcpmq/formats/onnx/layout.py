"""Which files a model becomes and what they are called: the layout that transformers.js loads."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from mcpmq.families.family import Architecture, VisionKind
from mcpmq.formats.onnx import decoder, embedding, linear_attention, vision, vision_merger, vision_qwenvl
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.formats.onnx.graph import ACCURACY_LEVEL, Graph
from mcpmq.formats.onnx.weights import Weights
from mcpmq.plan import Step
from mcpmq.progress import Progress
from mcpmq.quantized import Quantized
from mcpmq.recipe import IntegerScheme

FOLDER = "onnx"
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
    "siglip-merger": vision_merger.emit,
    "qwen2-vl": vision_qwenvl.emit,
    "qwen2.5-vl": vision_qwenvl.emit,
    "qwen3-vl": vision_qwenvl.emit,
}


def parts_of(architecture: Architecture) -> tuple[Part, ...]:
    """The graphs of a model; one that reads text only has no first."""
    seeing = architecture.vision
    tower = [Part("vision+projector", "vision_encoder", ("vision", "projector"), TOWERS[seeing.kind])] if seeing else []
    return (
        *tower,
        Part("embedding", "embed_tokens", ("embedding",), embedding.emit),
        Part("language", "decoder_model_merged", ("language", "head"), decoder.emit),
    )


@dataclass(frozen=True, slots=True)
class Written:
    """One graph on disk."""

    graph: str  # file names in the folder of graphs
    chunks: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        return [f"{FOLDER}/{name}" for name in (self.graph, *self.chunks)]


def write_part(part: Part, quantized: Quantized, folder: Path, accuracy_level: int, progress: Progress) -> Written:
    """Write one graph and its weights into the folder of graphs."""
    name = f"{part.stem}{type_names(part, quantized)[1]}.onnx"
    with closing(ExternalData(folder, f"{name}_data")) as data:
        graph = Graph(part.stem, data)
        part.emit(graph, Weights(quantized, graph, accuracy_level), quantized.architecture, progress)
    graph.save(folder / name, version("mcpmq"), _properties(part, quantized, accuracy_level))
    return Written(name, tuple(data.files))


def type_names(part: Part, quantized: Quantized) -> tuple[str, str]:
    """The type that most numbers of a graph have, in transformers.js's words: of the session, of the file."""
    numbers: Counter[str] = Counter()
    for step in _steps(part, quantized):
        kind = f"int{step.scheme.bits}" if isinstance(step.scheme, IntegerScheme) else str(step.scheme or step.dtype)
        numbers[kind] += prod(step.spec.shape)
    return NAMES.get(numbers.most_common(1)[0][0], FLOAT32)


def _steps(part: Part, quantized: Quantized) -> list[Step]:
    return [step for step in quantized.steps if step.spec.component in part.holds]


def _properties(part: Part, quantized: Quantized, accuracy_level: int) -> dict[str, str]:
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


def _least_runtime(part: Part, quantized: Quantized) -> str:
    linear = part.component == "language" and quantized.architecture.language.linear
    return linear_attention.LEAST_RUNTIME if linear else LEAST_RUNTIME


def write_texts(quantized: Quantized, out: Path, written: Mapping[str, Written]) -> list[str]:
    """Copy tokenizer and preprocessor files, and config.json with what transformers.js must know; their names."""
    names = []
    for file in quantized.artifact.files_of("model"):
        if file.name != "config.json":
            shutil.copyfile(file, out / file.name)
        names.append(file.name)
    config = {**quantized.config, "transformers.js_config": _session_settings(quantized, written)}
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return names


def _session_settings(quantized: Quantized, written: Mapping[str, Written]) -> dict[str, Any]:
    return {
        "dtype": {part.stem: type_names(part, quantized)[0] for part in parts_of(quantized.architecture)},
        "use_external_data_format": {one.graph: len(one.chunks) for one in written.values()},
    }
