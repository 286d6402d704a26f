"""Weights into a graph, whatever scheme each is on: integers in blocks stay integers, floats keep their dtype."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.formats.onnx.external_data import StoredArray
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.packing import STRIPE_CODES, PackedWeight, for_lookup, for_product
from mcpmq.qtensor import QTensor
from mcpmq.quantized import Quantized


@dataclass(frozen=True, slots=True)
class Weights:
    """Reads the weights of a quantized model, one at a time, into the graph that computes with them.

    `accuracy_level` is MatMulNBits' own: 4 rounds activations to 8 bits, which phones compute fast; 0 does not round.
    """

    quantized: Quantized
    graph: Graph
    accuracy_level: int

    def linear(self, value: ir.Value, name: str) -> ir.Value:
        """Float32 [..., columns] times a matrix [rows, columns], plus its bias where it has one: [..., rows]."""
        bias = self.load_float(f"{name}.bias") if f"{name}.bias" in self.quantized.specs else None
        return self.product(value, name, self.quantized.load(name), bias)

    def product(self, value: ir.Value, name: str, weight: QTensor | Tensor, bias: Tensor | None) -> ir.Value:
        """The same for a weight and a bias that are loaded already."""
        addend = self._stored(f"{name}.bias", bias) if bias is not None else None
        if isinstance(weight, QTensor):
            return self._integer_product(value, name, weight, addend)
        factor = self._float32(self._stored(name, weight.T), weight.dtype)
        product = self.graph.node("MatMul", value, factor)
        return product if addend is None else self.graph.node("Add", product, addend)

    def linear_part(self, value: ir.Value, name: str, part: str, rows: slice) -> ir.Value:
        """The same with some rows of a matrix that has a bias; `part` tells them from the others."""
        weight, bias = rows_of(self.quantized.load(name), rows), self.load_float(f"{name}.bias")[rows]
        return self.product(value, f"{name}.{part}", weight, bias)

    def constant(self, values: Callable[[], Tensor], length: int) -> ir.Value:
        """Float32 [length] that torch computes as the native module does."""
        return self.graph.constant(values().numpy(), np.float32)

    def lookup(self, name: str, indices: ir.Value) -> ir.Value:
        """Rows of a table [rows, columns] at int64 indices [...]: float32 [..., columns]."""
        weight = self.quantized.load(name)
        if not isinstance(weight, QTensor):
            return self._float32(self.graph.node("Gather", self._stored(name, weight), indices, axis=0), weight.dtype)
        packed = for_lookup(weight)
        codes, scales, zeros = self._written(name, packed)
        settings = {"bits": packed.bits, "block_size": packed.block_columns, "gather_axis": 0, "quantize_axis": 1}
        return self.graph.contributed("GatherBlockQuantized", codes, indices, scales, zeros, **settings)

    def vector(self, name: str) -> ir.Value:
        """A bias or the scale of a norm, as float32 whatever its dtype was: they weigh next to nothing."""
        return self._stored(name, self.load_float(name))

    def array(self, name: str) -> ir.Value:
        """An array of any shape that nothing quantizes: float32."""
        tensor = self._unquantized(name)
        return self._float32(self._stored(name, tensor), tensor.dtype)

    def load_float(self, name: str) -> Tensor:
        """A weight that nothing quantizes, as float32."""
        return self._unquantized(name).float()

    def _unquantized(self, name: str) -> Tensor:
        weight = self.quantized.load(name)
        assert isinstance(weight, Tensor)
        return weight

    def _integer_product(self, value: ir.Value, name: str, weight: QTensor, bias: ir.Value | None) -> ir.Value:
        packed = for_product(weight)
        settings = {"K": weight.columns, "N": weight.rows, "bits": packed.bits, "block_size": packed.block_columns}
        inputs = [value, *self._written(name, packed), None, bias]
        while inputs[-1] is None:
            inputs.pop()
        return self.graph.contributed("MatMulNBits", *inputs, accuracy_level=self.accuracy_level, **settings)

    def _written(self, name: str, packed: PackedWeight) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        codes = self.graph.weight(f"{name}.codes", packed.codes)
        scales = self.graph.weight(f"{name}.scales", packed.scales)
        return codes, scales, self.graph.weight(f"{name}.zeros", packed.zeros) if packed.zeros else None

    def _stored(self, name: str, tensor: Tensor) -> ir.Value:
        return self.graph.weight(name, stored(tensor))

    def _float32(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """Floats of two bytes stay so on disk; the cast gives their very values."""
        return value if dtype is torch.float32 else self.graph.node("Cast", value, to=ir.DataType.FLOAT)


def rows_of(weight: QTensor | Tensor, span: slice) -> QTensor | Tensor:
    """Some rows of a weight; they share nothing with the others."""
    if isinstance(weight, Tensor):
        return weight[span]
    assert weight.scale is not None
    zero = None if weight.zero is None else weight.zero[span]
    return replace(weight, codes=weight.codes[span], scale=weight.scale[span], zero=zero)


def stored(tensor: Tensor) -> StoredArray:
    """A float tensor in its dtype; a transposed one is copied row-major, a stripe at a time."""
    dtype = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}
    return StoredArray(dtype[tensor.dtype], tuple(tensor.shape), _stripes(tensor))


def _stripes(tensor: Tensor) -> Iterator[NDArray[np.generic]]:
    step = max(1, STRIPE_CODES // max(1, tensor[0].numel()))
    for start in range(0, len(tensor), step):
        whole = tensor[start : start + step].contiguous()
        yield (whole.view(torch.uint16) if whole.dtype is torch.bfloat16 else whole).numpy()  # numpy has no bfloat16
