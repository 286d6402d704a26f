"""Small helpers for tests of the ONNX format: one-node graphs, and artifacts that compute activations in float32."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.artifact import write_manifest
from mcpmq.formats import onnx as onnx_format
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weights import Weights
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Quantized
from mcpmq.scheme import IntegerScheme
from mcpmq.system.progress import silent


def artifact_of(quantized: Quantized, out: Path, accuracy_level: int = 0) -> Path:
    """An `onnx` artifact in `out`."""
    out.mkdir()
    files = onnx_format.write(quantized, out, silent, accuracy_level=accuracy_level)
    write_manifest(out, quantized.artifact.manifest.model_copy(update={"kind": "onnx", "files": ()}), files)
    return out


def random_weight(scheme: IntegerScheme, rows: int, columns: int, seed: int = 0) -> QTensor:
    """Random codes on a random grid; some scales are negative, as those of a symmetric 4-bit grid are."""
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.groups(columns)
    codes = torch.randint(0, 2**scheme.bits, (rows, columns), generator=generator).to(torch.uint8)
    zero = torch.randint(0, 2**scheme.bits, (rows, groups), generator=generator).to(torch.uint8)
    scale = (torch.randn((rows, groups), generator=generator) * 0.01).half()
    return QTensor(scheme, columns, codes, scale, None if scheme.symmetric else zero)


def run_product(
    folder: Path, weight: QTensor | Tensor, value: NDArray[np.float32], bias: Tensor | None = None
) -> NDArray[np.float32]:
    """What the runtime computes for one linear layer."""

    def emit(weights: Weights, given: ir.Value) -> ir.Value:
        return weights.product(given, "weight", weight, bias)

    return _run(folder, weight, emit, ir.DataType.FLOAT, value)


def run_lookup(folder: Path, weight: QTensor | Tensor, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the runtime looks up in one table."""
    return _run(folder, weight, lambda weights, given: weights.lookup("weight", given), ir.DataType.INT64, indices)


def _run(
    folder: Path,
    weight: QTensor | Tensor,
    emit: Callable[[Weights, ir.Value], ir.Value],
    dtype: ir.DataType,
    given: NDArray[Any],
) -> NDArray[np.float32]:
    quantized: Any = SimpleNamespace(load=lambda name: weight)
    with closing(ExternalData(folder, "one.onnx_data")) as data:
        graph = Graph("one", data)
        value = graph.input("given", dtype, list(given.shape))
        result = emit(Weights(quantized, graph, accuracy_level=0, ffn=0), value)
        graph.output(result, "result", ir.DataType.FLOAT, ["rows", "columns"])
    graph.save(folder / "one.onnx", "0", {})
    onnx.checker.check_model(str(folder / "one.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "one.onnx"), providers=["CPUExecutionProvider"])
    result_array: NDArray[np.float32] = session.run(None, {"given": given})[0]
    return result_array
