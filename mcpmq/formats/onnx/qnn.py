"""Write the vision graph for NPUs: one slice size, standard operators, 16-bit activations and 8-bit weights (QDQ).

NPUs of phones require static shapes and fully quantized graphs. ONNX Runtime's configuration for Qualcomm's QNN selects
the types of every operator, and ONNX Runtime quantizes: the weights are rounded once more.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError
from mcpmq.families import family_named
from mcpmq.families.encoding import encode_sample
from mcpmq.families.slicing import resize_slice
from mcpmq.formats.onnx import vision
from mcpmq.formats.onnx.external_data import ExternalData, StoredArray
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.formats.onnx.weight_values import LoadedValues
from mcpmq.quantized_model import QuantizedModel
from mcpmq.system.progress import Progress
from mcpmq.system.temporary_folder import temporary_folder

MIN_EXTERNAL_NBYTES = 1024
PixelValues = NDArray[np.float32]


def static_patch_grid(quantized: QuantizedModel) -> tuple[int, int]:
    """Return the rows and columns of patches of the one slice size: the square of the slice resolution."""
    shape = quantized.architecture.required_vision
    side = shape.slice_resolution // shape.patch_size
    return side, side


def write(
    quantized: QuantizedModel,
    samples: SampleSet,
    file: Path,
    data: ExternalData,
    properties: Mapping[str, str],
    progress: Progress,
) -> None:
    """Write the graph with `properties` as its metadata, and its external data.

    Memory: several copies of the vision encoder in float32.

    Raises:
        DatasetError: no sample has an image.
    """
    size = static_patch_grid(quantized)
    pixels = _calibration_pixels(quantized, progress(samples.samples, "encoding samples"), size)
    if not pixels:
        raise DatasetError(f"no sample of `{samples.path}` has an image", "pass a set with images to `--npu`")
    with temporary_folder(file.parent) as folder:
        floats, quantized_file = folder / "floats.onnx", folder / "quantized.onnx"
        _write_floats(quantized, size, floats, progress)
        _quantize(_fold_constants(floats), quantized_file, pixels)
        model = ir.load(quantized_file)
        _move_weights(model, data)
        model.producer_name, model.producer_version = "mcpmq", version("mcpmq")
        model.metadata_props.update({**properties, "activations": "uint16", "slice_patches": "x".join(map(str, size))})
        ir.save(model, file)


def _calibration_pixels(
    quantized: QuantizedModel, samples: Iterable[Sample], size: tuple[int, int]
) -> list[PixelValues]:
    family, patch = family_named(quantized.artifact.manifest.family), quantized.architecture.required_vision.patch_size
    processor, inputs = family.open_processor(quantized.path), family.open_vision_inputs(quantized.path)
    encoded = (encode_sample(processor, sample) for sample in samples)
    parts = (resize_slice(part, patch * size[0], patch * size[1]) for sample in encoded for part in sample.slices)
    return [inputs.graph_inputs(part)["pixel_values"] for part in parts]


def _write_floats(quantized: QuantizedModel, size: tuple[int, int], file: Path, progress: Progress) -> None:
    shape = quantized.architecture.required_vision
    with closing(ExternalData(file.parent, f"{file.name}_data")) as data:
        graph = Graph("vision_encoder", data)
        values, ffn = LoadedValues(quantized), shape.intermediate_size
        weights = WeightEmitter(quantized, graph, values, ffn, accuracy_level=0, dequantize=True)
        vision.emit_static(graph, weights, quantized.architecture, size, progress)
        data.finish()
    graph.save(file, "", {})


def _fold_constants(file: Path) -> Path:
    """Let ONNX Runtime precompute all nodes that do not depend on pixels: position embeddings and queries."""
    folded = file.with_name("folded.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.onnx_data")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return folded


class _PixelReader(CalibrationDataReader):  # type: ignore[misc]
    """Pixels of calibration slices, as the quantizer reads them."""

    def __init__(self, pixels: Sequence[PixelValues]) -> None:
        self._remaining = iter(pixels)

    def get_next(self) -> dict[str, PixelValues] | None:
        pixels = next(self._remaining, None)
        return None if pixels is None else {"pixel_values": pixels}


def _quantize(file: Path, out: Path, pixels: Sequence[PixelValues]) -> None:
    types = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt8, "per_channel": True}
    with _warnings_disabled():
        quantize(str(file), str(out), get_qnn_qdq_config(file, _PixelReader(pixels), **types))


@contextmanager
def _warnings_disabled() -> Iterator[None]:
    """Disable two warnings of the quantizer: unprocessed graphs, and per-channel quantization of norms."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _move_weights(model: ir.Model, data: ExternalData) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= MIN_EXTERNAL_NBYTES:
            array = StoredArray(tensor.dtype, tuple(tensor.numpy().shape), [tensor.numpy()])
            value.const_value = data.append(name, array)
