"""ONNX for phones and browsers: vision encoder, embedding and decoder graphs in the layout of transformers.js, and with
the files of ONNX Runtime GenAI.

Graphs are emitted directly, weights are streamed and their codes are unchanged. This module imports without the ONNX
packages.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.artifact import Artifact
from mcpmq.formats.format import FLOAT_SCHEMES, FileProvenance, FilesForecast, Format, integer_schemes
from mcpmq.formats.model_view import ModelView
from mcpmq.formats.onnx.block_quant import ACCURACY_LEVEL, unsupported_table_reason
from mcpmq.plan import TensorPlan
from mcpmq.scheme import IntegerScheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # a plan is checked and forecast without torch
    from mcpmq.dataset import SampleSet
    from mcpmq.quantized_model import QuantizedModel


def _shape_limit(tensor: TensorPlan) -> str | None:
    if not isinstance(tensor.scheme, IntegerScheme) or tensor.spec.role != "table":
        return None
    reason = unsupported_table_reason(tensor.scheme, tensor.matrix_shape[1])
    return f"{reason}; use `int8-g32`, `f16` or `keep`" if reason else None


def _padded_shapes(quantized: "QuantizedModel") -> dict[str, tuple[int, ...]]:
    from mcpmq.formats.onnx.layout import padded_intermediate_size
    from mcpmq.formats.padding import padded_shapes

    return padded_shapes(quantized.specs, padded_intermediate_size(quantized))


def write(
    quantized: "QuantizedModel",
    out: Path,
    progress: Progress,
    *,
    accuracy_level: int = ACCURACY_LEVEL,
    npu: "SampleSet | None" = None,
) -> dict[str, list[str]]:
    """Write the graphs, their weights and the configuration into the empty folder `out`: component -> relative paths.

    `accuracy_level` 0 computes activations in float32, for comparisons with torch. With `npu` the vision graph is
    static and quantized for NPUs; the images of this set calibrate its activations.
    """
    from mcpmq.formats.onnx.config_files import write_config_files
    from mcpmq.formats.onnx.genai import write_genai_files
    from mcpmq.formats.onnx.genai_graphs import COMPONENT
    from mcpmq.formats.onnx.layout import FOLDER, VISION, GraphFiles, graph_specs, write_graph, write_static_vision

    folder, written = out / FOLDER, dict[str, GraphFiles]()
    folder.mkdir()
    for spec in graph_specs(quantized.architecture):
        if npu and spec.component == VISION:
            written[VISION] = write_static_vision(spec, quantized, npu, folder, progress)
        else:
            written[spec.component] = write_graph(spec, quantized, folder, written, accuracy_level, progress)
    files = {component: graph.files for component, graph in written.items()}
    texts = write_config_files(quantized, out, written)
    variants, more_texts = write_genai_files(quantized, out, written)
    return files | {COMPONENT: variants, "model": [*texts, *more_texts]}


def forecast(model: ModelView) -> FilesForecast:
    """Forecast the graphs, their weights and the configuration files, to the byte."""
    from mcpmq.formats.onnx.sizes import forecast_files

    return forecast_files(model)


def _split(artifact: Artifact, out: Path, max_nbytes: int) -> dict[str, list[str]]:
    from mcpmq.formats.onnx.splitting import split_files

    return split_files(artifact, out, max_nbytes)


def _provenance(artifact: Artifact) -> Iterator[FileProvenance]:
    from mcpmq.formats.onnx.provenance import read_provenance

    return read_provenance(artifact)


FORMAT = Format(
    name="onnx",
    requires=("onnx", "onnx_ir", "onnxruntime"),
    engine="onnx",
    min_runtime="ONNX Runtime 1.24",
    schemes=(*integer_schemes((4, 8), (16, 32, 64, 128, 256, None), asymmetric=True), *FLOAT_SCHEMES),
    limits="ONNX Runtime has operators for integer schemes only",
    recipes={4: "calibrated-int4", 8: "phone-int8"},
    activations=("u8", "s8-token"),
    write=write,
    forecast=forecast,
    shape_limit=_shape_limit,
    padded_shapes=_padded_shapes,
    split=_split,
    provenance=_provenance,
)
