"""Weights into a graph, whatever scheme each is on: integers in blocks stay integers, floats keep their dtype."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.formats.onnx.external_data import StoredArray
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.packing import STRIPE_CODES, PackedWeight, for_integer_product, for_lookup, for_product
from mcpmq.formats.padding import filled, widened
from mcpmq.formats.shapes import stored_shape
from mcpmq.grids import dequantize
from mcpmq.grids.activation import InputGrid
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Quantized


@dataclass(frozen=True, slots=True)
class Weights:
    """Reads the weights of a quantized model, one at a time, into the graph that computes with them.

    `accuracy_level` is MatMulNBits' own: 4 rounds activations to 8 bits, which phones compute fast; 0 does not round.
    `ffn` is the hidden width of the vision FFN in the file, as computed or wider; `dequantized` has all in floats.
    """

    quantized: Quantized
    graph: Graph
    accuracy_level: int
    ffn: int
    dequantized: bool = False
    _on_grids: dict[tuple[str | None, InputGrid], ir.Value] = field(default_factory=dict)  # one for all that read it

    def has(self, name: str) -> bool:
        """Whether the model has a weight."""
        return name in self.quantized.specs

    def linear(self, value: ir.Value, name: str) -> ir.Value:
        """Float32 [..., columns] times a matrix [rows, columns], plus its bias where it has one: [..., rows].

        All axes of a kernel but the first are its columns.
        """
        spec, bias = self.quantized.specs[name], None
        if biased := self.quantized.specs.get(f"{name}.bias"):
            bias = filled(self.load_float(biased.name), stored_shape(biased, self.ffn))
        weight = widened(self.load(name), stored_shape(spec, self.ffn))
        weight = weight.flatten(1) if isinstance(weight, Tensor) else weight
        [grid] = self.quantized.input_grids(name) or (None,)
        return self.product(value, name, weight, bias, grid)

    def product(
        self,
        value: ir.Value,
        name: str,
        weight: QTensor | Tensor,
        bias: Tensor | None,
        grid: InputGrid | None = None,
    ) -> ir.Value:
        """The same for a weight and a bias that are loaded already; `grid` is what the inputs are rounded to."""
        addend = self._stored(f"{name}.bias", bias) if bias is not None else None
        if isinstance(weight, Tensor):
            factor = self._float32(self._stored(name, weight.T), weight.dtype)
        elif grid is None:
            return self._blockwise_product(value, name, weight, addend)
        else:
            value, factor = self._rounded(value, grid), self._rowwise_factor(name, weight)
        product = self.graph.node("MatMul", value, factor)
        return product if addend is None else self.graph.node("Add", product, addend)

    def linear_parts(self, values: Sequence[ir.Value], name: str, parts: str) -> tuple[ir.Value, ...]:
        """The same with equal shares of the rows of a matrix that has a bias, each for a value of its own."""
        weight, bias = self.load(name), self.load_float(f"{name}.bias")
        rows = len(bias) // len(values)
        grids: Sequence[InputGrid | None] = self.quantized.input_grids(name) or (None,)
        if len(grids) == 1:  # all see the same
            grids = [grids[0]] * len(values)
        spans = [slice(number * rows, (number + 1) * rows) for number in range(len(values))]
        return tuple(
            self.product(value, f"{name}.{part}", rows_of(weight, span), bias[span], grid)
            for value, part, span, grid in zip(values, parts, spans, grids, strict=True)
        )

    def constant(self, values: Callable[[], Tensor], length: int) -> ir.Value:
        """Float32 [length] that torch computes as the native module does."""
        return self.graph.constant(values().numpy(), np.float32)

    def lookup(self, name: str, indices: ir.Value) -> ir.Value:
        """Rows of a table [rows, columns] at int64 indices [...]: float32 [..., columns]."""
        weight = self.load(name)
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

    def load(self, name: str) -> QTensor | Tensor:
        """A weight as it goes into the graph."""
        weight = self.quantized.load(name)
        return dequantize(weight) if self.dequantized and isinstance(weight, QTensor) else weight

    def load_float(self, name: str) -> Tensor:
        """A weight that nothing quantizes, as float32."""
        return self._unquantized(name).float()

    def _unquantized(self, name: str) -> Tensor:
        weight = self.load(name)
        assert isinstance(weight, Tensor)
        return weight

    def _rounded(self, value: ir.Value, grid: InputGrid) -> ir.Value:
        """A value on a grid; with the next weight in integers too, ONNX Runtime multiplies integers."""
        key = value.name, grid
        if key not in self._on_grids:
            scale, zero = self.graph.constant(grid.scale, np.float32), self.graph.constant(grid.zero, np.uint8)
            codes = self.graph.node("QuantizeLinear", value, scale, zero)
            self._on_grids[key] = self.graph.node("DequantizeLinear", codes, scale, zero)
        return self._on_grids[key]

    def _rowwise_factor(self, name: str, weight: QTensor) -> ir.Value:
        """Weights of one scale a row as signed bytes [columns, rows] and what makes floats of them."""
        packed = for_integer_product(weight)
        codes = self.graph.weight(f"{name}.codes", packed.codes)
        scales = self.graph.weight(f"{name}.scales", packed.scales)
        return self.graph.node("DequantizeLinear", codes, scales, axis=1)

    def _blockwise_product(self, value: ir.Value, name: str, weight: QTensor, bias: ir.Value | None) -> ir.Value:
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
