"""The vision graph for NPUs: a slice of one size, standard operators, 16-bit activations and 8-bit weights throughout.

Accelerators of phones take static shapes and whole graphs of integers. Which operator takes which types is ONNX
Runtime's knowledge (its configuration for Qualcomm's QNN), and so is the rounding: weights are rounded once more.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from mcpmq.dataset import CalibrationSet, Sample
from mcpmq.errors import CalibrationError
from mcpmq.families import family_named
from mcpmq.families.slicing import stretched
from mcpmq.formats.onnx import vision
from mcpmq.formats.onnx.external_data import ExternalData, StoredArray
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weights import Weights
from mcpmq.quantized_model import Quantized
from mcpmq.system.progress import Progress

LEAST_EXTERNAL_NBYTES = 1024
Pixels = NDArray[np.float32]


def static_size(quantized: Quantized) -> tuple[int, int]:
    """Rows and columns of patches of the one slice that the graph takes: the square that slices come nearest to."""
    shape = quantized.architecture.sees
    side = shape.slice_side // shape.patch
    return side, side


def write(
    quantized: Quantized,
    samples: CalibrationSet,
    file: Path,
    data: ExternalData,
    properties: Mapping[str, str],
    progress: Progress,
) -> None:
    """Write the graph, which says `properties` of itself, and its external data.

    In memory: the tower in float32, several times.

    Raises:
        CalibrationError: no sample has an image.
    """
    size = static_size(quantized)
    shown = _slices(quantized, progress(samples.samples, "reading samples"), size)
    if not shown:
        raise CalibrationError(f"no sample of `{samples.path}` has an image", "name a set with images with `--npu`")
    with TemporaryDirectory(prefix="mcpmq-", dir=file.parent) as folder:
        floats, rounded = Path(folder) / "floats.onnx", Path(folder) / "rounded.onnx"
        _write_floats(quantized, size, floats, progress)
        _round(_folded(floats), rounded, shown)
        model = ir.load(rounded)
        _move_weights(model, data)
        model.producer_name, model.producer_version = "mcpmq", version("mcpmq")
        model.metadata_props.update({**properties, "activations": "uint16", "slice_patches": "x".join(map(str, size))})
        ir.save(model, file)


def _slices(quantized: Quantized, samples: Iterable[Sample], size: tuple[int, int]) -> list[Pixels]:
    family, patch = family_named(quantized.artifact.manifest.family), quantized.architecture.sees.patch
    processor, pixels = family.processor(quantized.path), family.pixels(quantized.path)
    encoded = (processor.encode(sample.id, sample.image, sample.prompt, sample.answer) for sample in samples)
    parts = (stretched(part, patch * size[0], patch * size[1]) for inputs in encoded for part in inputs.slices)
    return [pixels.graph_inputs(part)["pixel_values"] for part in parts]


def _write_floats(quantized: Quantized, size: tuple[int, int], file: Path, progress: Progress) -> None:
    shape = quantized.architecture.sees
    with closing(ExternalData(file.parent, f"{file.name}_data")) as data:
        graph = Graph("vision_encoder", data)
        weights = Weights(quantized, graph, accuracy_level=0, ffn=shape.ffn, dequantized=True)
        vision.emit_static(graph, weights, quantized.architecture, size, progress)
    graph.save(file, "", {})


def _folded(file: Path) -> Path:
    """The same graph with everything computed that is the same for all pixels: positions, and the queries."""
    folded = file.with_name("folded.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.onnx_data")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return folded


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    """Slices for the quantizer, one after the other."""

    def __init__(self, shown: Sequence[Pixels]) -> None:
        self._left = iter(shown)

    def get_next(self) -> dict[str, Pixels] | None:
        pixels = next(self._left, None)
        return None if pixels is None else {"pixel_values": pixels}


def _round(file: Path, rounded: Path, shown: Sequence[Pixels]) -> None:
    types = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt8, "per_channel": True}
    with _without_warnings():
        quantize(str(file), str(rounded), get_qnn_qdq_config(file, _Feeds(shown), **types))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The quantizer warns of what is done here, and of norms, which have no rows."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _move_weights(model: ir.Model, data: ExternalData) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= LEAST_EXTERNAL_NBYTES:
            array = StoredArray(tensor.dtype, tuple(tensor.numpy().shape), [tensor.numpy()])
            value.const_value = data.append(name, array)
