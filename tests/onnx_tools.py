"""Test helpers for the ONNX format: one-node graphs and artifacts with float32 activations."""

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
from mcpmq.families.family import TensorSpec
from mcpmq.formats import onnx as onnx_format
from mcpmq.formats.onnx.external_data import ExternalData
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.formats.onnx.weight_values import LoadedValues
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.scheme import IntegerScheme
from mcpmq.system.progress import silent


def write_onnx_artifact(quantized: QuantizedModel, out: Path, accuracy_level: int = 0) -> Path:
    """Write an `onnx` artifact to `out`."""
    out.mkdir()
    files = onnx_format.FORMAT.write(quantized, out, silent, accuracy_level=accuracy_level)
    write_manifest(out, quantized.artifact.manifest.model_copy(update={"kind": "onnx", "files": ()}), files)
    return out


def random_weight(scheme: IntegerScheme, rows: int, columns: int, seed: int = 0) -> IntegerTensor:
    """Return random codes on a random grid; some scales are negative, as on a symmetric 4-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.num_groups(columns)
    codes = torch.randint(0, 2**scheme.bits, (rows, columns), generator=generator).to(torch.uint8)
    zero = torch.randint(0, 2**scheme.bits, (rows, groups), generator=generator).to(torch.uint8)
    scale = (torch.randn((rows, groups), generator=generator) * 0.01).half()
    return IntegerTensor(scheme, codes, scale, None if scheme.symmetric else zero)


def run_matmul(
    folder: Path,
    weight: QTensor | Tensor,
    value: NDArray[np.float32],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> NDArray[np.float32]:
    """Compute one linear layer in ONNX Runtime."""
    tensors = {"weight": weight} if bias is None else {"weight": weight, "weight.bias": bias}

    def emit(weights: WeightEmitter, given: ir.Value) -> ir.Value:
        return weights.linear(given, "weight")

    return _run(folder, tensors, emit, ir.DataType.FLOAT, value, activation)


def run_lookup(folder: Path, weight: QTensor | Tensor, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Look up rows of one table in ONNX Runtime."""
    tensors = {"weight": weight}
    return _run(folder, tensors, lambda weights, given: weights.lookup("weight", given), ir.DataType.INT64, indices)


def _run(
    folder: Path,
    tensors: dict[str, QTensor | Tensor],
    emit: Callable[[WeightEmitter, ir.Value], ir.Value],
    dtype: ir.DataType,
    given: NDArray[Any],
    activation: str | None = None,
) -> NDArray[np.float32]:
    quantized = _fake_model(tensors, activation)
    with closing(ExternalData(folder, "one.onnx_data")) as data:
        graph = Graph("one", data)
        value = graph.input("given", dtype, list(given.shape))
        weights = WeightEmitter(quantized, graph, LoadedValues(quantized), intermediate_size=0, accuracy_level=0)
        graph.output(emit(weights, value), "result", ir.DataType.FLOAT, ["rows", "columns"])
    graph.save(folder / "one.onnx", "0", {})
    onnx.checker.check_model(str(folder / "one.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "one.onnx"), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"given": given})[0]
    return result


def _fake_model(tensors: dict[str, QTensor | Tensor], activation: str | None = None) -> Any:
    """A quantized model of these tensors alone."""
    schemes = {name: one.scheme if isinstance(one, QTensor) else None for name, one in tensors.items()}
    dtypes = {name: str(getattr(one, "dtype", "")).removeprefix("torch.") for name, one in tensors.items()}
    return SimpleNamespace(
        load=tensors.get,
        row_chunks=lambda name: _row_chunks(tensors[name]),
        scheme=schemes.get,
        activation=lambda name: activation,
        activation_grids=lambda name: (),
        specs={name: TensorSpec(name, name, tuple(one.shape)) for name, one in tensors.items()},
        records={name: SimpleNamespace(dtype=dtype, activation=None) for name, dtype in dtypes.items()},
    )


def _row_chunks(weight: Any) -> list[QTensor]:
    """Return a weight in chunks of rows, of which the last one is smaller."""
    return [weight.slice_rows(slice(row, row + 20)) for row in range(0, weight.rows, 20)]
