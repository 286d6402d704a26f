"""Write the weights of a model into an ONNX graph: the scheme of a weight decides its operator and its arrays.

Integer weights stay integers in blocks, floats keep their dtype. The same code writes an artifact and forecasts its
size: in a forecast the weights have no values, and the graph's data sink counts arrays instead of writing them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mcpmq.formats.model_view import ModelView
from mcpmq.formats.onnx.block_quant import ACCURACY_LEVEL
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.packing import (
    PackedWeight,
    float_array,
    pack_for_gather,
    pack_for_int8_matmul,
    pack_for_integer_sums,
    pack_for_matmul,
)
from mcpmq.formats.padding import stored_shape
from mcpmq.scheme import IntegerScheme

if TYPE_CHECKING:  # a forecast emits graphs without torch
    from torch import Tensor

    from mcpmq.qtensor import IntegerTensor

FLOAT_DTYPES = {
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


class InputGrid(Protocol):
    """The grid of a matrix's inputs; equal grids on one value share their nodes."""

    @property
    def scale(self) -> float: ...
    @property
    def zero_point(self) -> int: ...


class TokenInput(NamedTuple):
    """The inputs of a matrix as int8 with a scale for each token, which the graph computes."""

    half_range: float = 127.5  # as in compressed-tensors
    zero_point: int = 128  # of unsigned codes, which MatMulInteger multiplies fast
    smallest: float = 1e-30  # magnitude of a token, so that one of zeros has a scale


TOKEN_INPUT = TokenInput()


class WeightValues(Protocol):
    """Source of all that file headers do not contain; a forecast has placeholders and no torch."""

    def codes(self, name: str, shape: tuple[int, int]) -> "Iterable[IntegerTensor]":
        """Yield chunks of rows of a quantized weight, padded to [out, in] = `shape`; none in a forecast."""

    def floats(self, name: str, shape: tuple[int, ...]) -> "Tensor | None":
        """Return an unquantized or dequantized weight, padded with zeros to `shape`; None in a forecast."""

    def activation_grids(self, name: str, inputs: Sequence[ir.Value]) -> Sequence[InputGrid | TokenInput]:
        """Return the grids of a matrix's inputs: one for all rows or one per equal share of them; none for floats."""

    def constant(self, compute: "Callable[[], Tensor]", length: int) -> NDArray[np.float32]:
        """Return float32 [length], as `compute` returns it."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [rows, columns] of a graph; without values in a forecast."""

    name: str
    shape: tuple[int, int]
    scheme: IntegerScheme | None  # None: floats of `dtype`
    dtype: ir.DataType
    has_bias: bool
    codes: "Iterable[IntegerTensor]" = ()  # chunks of rows, which are read once
    floats: "Tensor | None" = None
    bias: "Tensor | None" = None

    def whole_codes(self) -> "IntegerTensor | None":
        """Return the quantized weight; None in a forecast, and for floats."""
        chunks = list(self.codes)
        if len(chunks) < 2:
            return chunks[0] if chunks else None
        from mcpmq.qtensor import concat_rows

        return concat_rows(chunks, self.shape[0])

    def with_whole_codes(self) -> "Matrix":
        """Return the matrix with codes that can be read several times."""
        weight = self.whole_codes()
        return self if weight is None else replace(self, codes=(weight,))

    def slice_rows(self, name: str, rows: slice) -> "Matrix":
        """Return some of the rows as a matrix of its own; its codes are whole."""
        return replace(
            self,
            name=name,
            shape=(rows.stop - rows.start, self.shape[1]),
            codes=tuple(one.slice_rows(rows) for one in self.codes),
            floats=None if self.floats is None else self.floats[rows],
            bias=None if self.bias is None else self.bias[rows],
        )


@dataclass(frozen=True, slots=True)
class WeightEmitter:
    """Put the weights of a model into a graph, one at a time.

    `accuracy_level` is that of MatMulNBits: 4 rounds activations to 8 bits, which is fast on phones; 0 rounds none.
    `intermediate_size` is that of the vision FFN in the file, padded or not; `dequantize` turns all weights to floats.
    """

    model: ModelView
    graph: Graph
    values: WeightValues
    intermediate_size: int
    accuracy_level: int = ACCURACY_LEVEL
    dequantize: bool = False
    _quantized_inputs: dict[tuple[str | None, InputGrid], ir.Value] = field(default_factory=dict)
    _token_inputs: dict[str | None, tuple[ir.Value, ir.Value]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Return True if the model has the weight."""
        return name in self.model.specs

    def linear(self, value: ir.Value, name: str) -> ir.Value:
        """Multiply float32 [..., columns] by a matrix [rows, columns] and add its bias, if any: [..., rows].

        All axes of a convolution kernel but the first are its columns.
        """
        [grid] = self.values.activation_grids(name, [value]) or (None,)
        return self._product(value, self._matrix(name), grid)

    def linear_split(self, values: Sequence[ir.Value], name: str, parts: str) -> tuple[ir.Value, ...]:
        """Multiply each value by an equal share of the rows of a matrix, such as a fused `qkv`."""
        matrix = self._matrix(name).with_whole_codes()
        grids = list(self.values.activation_grids(name, values) or (None,))
        rows = matrix.shape[0] // len(values)
        if len(grids) == 1:  # all shares have the same inputs
            grids *= len(values)
        spans = [slice(number * rows, (number + 1) * rows) for number in range(len(values))]
        shares = [matrix.slice_rows(f"{name}.{part}", span) for part, span in zip(parts, spans, strict=True)]
        return tuple(
            self._product(value, share, grid) for value, share, grid in zip(values, shares, grids, strict=True)
        )

    def lookup(self, name: str, indices: ir.Value) -> ir.Value:
        """Gather rows of a table [rows, columns] at int64 indices [...]: float32 [..., columns]."""
        table = self._matrix(name)
        if table.scheme is None:
            array = self.graph.weight(name, float_array(table.dtype, table.shape, table.floats))
            return self._to_float32(self.graph.node("Gather", array, indices, axis=0), table.dtype)
        packed = pack_for_gather(table.scheme, table.shape, table.codes)
        codes, scales, zeros = self._arrays(name, packed)
        attributes = {"bits": packed.bits, "block_size": packed.block_size, "gather_axis": 0, "quantize_axis": 1}
        return self.graph.contrib_node("GatherBlockQuantized", codes, indices, scales, zeros, **attributes)

    def vector(self, name: str) -> ir.Value:
        """Emit a bias or the scale of a norm: small, so always float32."""
        shape = self.model.specs[name].shape
        return self.graph.weight(name, float_array(ir.DataType.FLOAT, shape, self._float32_values(name, shape)))

    def array(self, name: str) -> ir.Value:
        """Emit an unquantized array of any shape as float32."""
        dtype, shape = self._dtype(name), self.model.specs[name].shape
        array = self.graph.weight(name, float_array(dtype, shape, self.values.floats(name, shape)))
        return self._to_float32(array, dtype)

    def constant(self, compute: "Callable[[], Tensor]", length: int) -> ir.Value:
        """Emit float32 [length]; torch computes it as the torch model does."""
        return self.graph.constant(self.values.constant(compute, length), np.float32)

    def _matrix(self, name: str) -> Matrix:
        stored = stored_shape(self.model.specs[name], self.intermediate_size)
        shape = stored[0], prod(stored[1:])
        scheme, bias = self._scheme(name), f"{name}.bias"
        floats = self.values.floats(name, stored) if scheme is None else None
        return Matrix(
            name,
            shape,
            scheme,
            self._dtype(name),
            self.has(bias),
            () if scheme is None else self.values.codes(name, shape),
            None if floats is None else floats.flatten(1),
            self._float32_values(bias, shape[:1]) if self.has(bias) else None,
        )

    def _product(self, value: ir.Value, matrix: Matrix, grid: InputGrid | TokenInput | None) -> ir.Value:
        rows, columns = matrix.shape
        bias = None
        if matrix.has_bias:
            bias = self.graph.weight(f"{matrix.name}.bias", float_array(ir.DataType.FLOAT, (rows,), matrix.bias))
        if matrix.scheme is None:
            transposed = None if matrix.floats is None else matrix.floats.T
            factor = self.graph.weight(matrix.name, float_array(matrix.dtype, (columns, rows), transposed))
            factor = self._to_float32(factor, matrix.dtype)
        elif grid is None:
            return self._blockwise_product(value, matrix, matrix.scheme, bias)
        elif isinstance(grid, TokenInput):
            return self._with_bias(self._integer_product(value, matrix, grid), bias)
        else:
            value, factor = self._quantized_input(value, grid), self._rowwise_factor(matrix)
        return self._with_bias(self.graph.node("MatMul", value, factor), bias)

    def _with_bias(self, product: ir.Value, bias: ir.Value | None) -> ir.Value:
        return product if bias is None else self.graph.node("Add", product, bias)

    def _quantized_input(self, value: ir.Value, grid: InputGrid) -> ir.Value:
        """Put a value on a grid; ONNX Runtime then multiplies integers, since the weight is one too."""
        key = value.name, grid
        if key not in self._quantized_inputs:
            scale, zero = self.graph.constant(grid.scale, np.float32), self.graph.constant(grid.zero_point, np.uint8)
            codes = self.graph.node("QuantizeLinear", value, scale, zero)
            self._quantized_inputs[key] = self.graph.node("DequantizeLinear", codes, scale, zero)
        return self._quantized_inputs[key]

    def _integer_product(self, value: ir.Value, matrix: Matrix, grid: TokenInput) -> ir.Value:
        """Multiply the codes of tokens and weights as integers, then by the scales of both."""
        inputs, scale = self._token_codes(value, grid)
        codes, scales, _ = self._arrays(matrix.name, pack_for_integer_sums(matrix.shape, matrix.whole_codes()))
        zero = self.graph.constant(grid.zero_point, np.uint8)
        sums = self.graph.node("MatMulInteger", inputs, codes, zero, zero)
        floats = self.graph.node("Cast", sums, to=ir.DataType.FLOAT)
        return self.graph.node("Mul", self.graph.node("Mul", floats, scale), scales)

    def _token_codes(self, value: ir.Value, grid: TokenInput) -> tuple[ir.Value, ir.Value]:
        """Return the codes of tokens, uint8 [..., columns], and their scales [..., 1]."""
        if value.name not in self._token_inputs:
            node, constant = self.graph.node, self.graph.constant
            largest = node("ReduceMax", node("Abs", value), constant([-1]), keepdims=1)
            positive = node("Max", largest, constant(grid.smallest, np.float32))
            scale = node("Div", positive, constant(grid.half_range, np.float32))
            steps = node("Round", node("Div", value, scale))
            moved = node("Add", steps, constant(grid.zero_point, np.float32))
            clipped = node("Min", moved, constant(np.iinfo(np.uint8).max, np.float32))
            self._token_inputs[value.name] = node("Cast", clipped, to=ir.DataType.UINT8), scale
        return self._token_inputs[value.name]

    def _rowwise_factor(self, matrix: Matrix) -> ir.Value:
        """Int8 codes [columns, rows] with one scale per row, dequantized in the graph."""
        codes, scales, _ = self._arrays(matrix.name, pack_for_int8_matmul(matrix.shape, matrix.whole_codes()))
        return self.graph.node("DequantizeLinear", codes, scales, axis=1)

    def _blockwise_product(
        self, value: ir.Value, matrix: Matrix, scheme: IntegerScheme, bias: ir.Value | None
    ) -> ir.Value:
        (rows, columns), packed = matrix.shape, pack_for_matmul(scheme, matrix.shape, matrix.codes)
        attributes = {"K": columns, "N": rows, "bits": packed.bits, "block_size": packed.block_size}
        inputs = [value, *self._arrays(matrix.name, packed), None, bias]
        while inputs[-1] is None:
            inputs.pop()
        return self.graph.contrib_node("MatMulNBits", *inputs, accuracy_level=self.accuracy_level, **attributes)

    def _arrays(self, name: str, packed: PackedWeight) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        codes = self.graph.weight(f"{name}.codes", packed.codes)
        scales = self.graph.weight(f"{name}.scales", packed.scales)
        return codes, scales, self.graph.weight(f"{name}.zeros", packed.zeros) if packed.zeros else None

    def _to_float32(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Cast 16-bit floats, which keep their size on disk; the cast is exact."""
        return value if dtype == ir.DataType.FLOAT else self.graph.node("Cast", value, to=ir.DataType.FLOAT)

    def _scheme(self, name: str) -> IntegerScheme | None:
        scheme = self.model.scheme(name)
        return scheme if isinstance(scheme, IntegerScheme) and not self.dequantize else None

    def _dtype(self, name: str) -> ir.DataType:
        """The dtype of a weight's floats in the file; dequantized ones are float32."""
        scheme = self.model.scheme(name)
        return FLOAT_DTYPES.get(str(scheme or self.model.records[name].dtype), ir.DataType.FLOAT)

    def _float32_values(self, name: str, shape: tuple[int, ...]) -> "Tensor | None":
        values = self.values.floats(name, shape)
        return None if values is None else values.float()
