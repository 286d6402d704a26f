"""The size of the three graphs to the byte: they are emitted for real, their weights are counted."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import TensorSpec
from mcpmq.formats.format import FileForecast, LayoutForecast, Runtime, WeightForecast
from mcpmq.formats.model_view import Declared
from mcpmq.formats.onnx.block_quant import block_columns, blocks
from mcpmq.formats.onnx.config_files import write_texts
from mcpmq.formats.onnx.external_data import CountedData, StoredArray
from mcpmq.formats.onnx.graph import ACCURACY_LEVEL, Graph
from mcpmq.formats.onnx.layout import FOLDER, Written, data_name, emit_part, parts_of, widened_ffn
from mcpmq.formats.shapes import stored_shape
from mcpmq.scheme import IntegerScheme
from mcpmq.system.progress import silent

if TYPE_CHECKING:
    from torch import Tensor

# Keys and values are float32; weights are laid out anew for the kernels when they are loaded, and kept so.
RUNTIME = Runtime(cache_nbytes=4, resident=1.35, pass_logits=1)
FLOATS = {
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


def sized(model: Declared) -> LayoutForecast:
    """Three graphs with their chunks of weights, the texts, and how each weight lies there."""
    files: list[FileForecast] = []
    arrays: list[Mapping[str, int]] = []
    written: dict[str, Written] = {}
    with TemporaryDirectory(prefix="mcpmq-") as name:
        graphs = Path(name) / FOLDER
        graphs.mkdir()
        for part in parts_of(model.architecture):
            data = CountedData(graphs, data_name(part, model))
            graph = Graph(part.stem, data)
            weights = CountedWeights(model, graph, widened_ffn(model))
            one = emit_part(part, model, graphs, graph, weights, ACCURACY_LEVEL, silent)
            sizes = {one.graph: (graphs / one.graph).stat().st_size, **data.chunks.sizes}
            files += [FileForecast(f"{FOLDER}/{file}", part.component, nbytes) for file, nbytes in sizes.items()]
            arrays.append(data.arrays)
            written[part.component] = one
        texts = [Path(name) / text for text in write_texts(model, Path(name), written)]
        files += [FileForecast(text.name, "model", text.stat().st_size) for text in texts]
    return LayoutForecast(tuple(files), tuple(_weights(model, arrays)), RUNTIME)


@dataclass(frozen=True, slots=True)
class CountedWeights:
    """The weights of a plan, put into a graph as `weights.Weights` puts them, without a value."""

    model: Declared
    graph: Graph
    ffn: int
    _on_grids: dict[str | None, ir.Value] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the model has a weight."""
        return name in self.model.specs

    def linear(self, value: ir.Value, name: str) -> ir.Value:
        """A matrix, and its bias where it has one."""
        rows, *columns = stored_shape(self.model.specs[name], self.ffn)
        return self._product(value, name, name, (rows, prod(columns)), self.has(f"{name}.bias"))

    def linear_parts(self, values: Sequence[ir.Value], name: str, parts: str) -> tuple[ir.Value, ...]:
        """Equal shares of the rows of a matrix, and of its bias."""
        rows, columns = self._shape(name)
        shape = rows // len(values), columns
        return tuple(
            self._product(value, name, f"{name}.{part}", shape, True) for value, part in zip(values, parts, strict=True)
        )

    def lookup(self, name: str, indices: ir.Value) -> ir.Value:
        """Rows of a table."""
        scheme, (rows, columns) = self.model.scheme(name), self._shape(name)
        if not isinstance(scheme, IntegerScheme):
            dtype = self._dtype(name)
            table = self._stored(name, dtype, (rows, columns))
            return self._float32(self.graph.node("Gather", table, indices, axis=0), dtype)
        codes, scales, zeros = self._integers(name, scheme, (rows, -(-columns * scheme.bits // 8)), columns)
        settings = {"bits": scheme.bits, "block_size": block_columns(scheme), "gather_axis": 0, "quantize_axis": 1}
        return self.graph.contributed("GatherBlockQuantized", codes, indices, scales, zeros, **settings)

    def vector(self, name: str) -> ir.Value:
        """A bias or the scale of a norm, float32."""
        return self._stored(name, ir.DataType.FLOAT, self.model.specs[name].shape)

    def array(self, name: str) -> ir.Value:
        """An array in the dtype of the source, turned into float32."""
        dtype = self._dtype(name)
        return self._float32(self._stored(name, dtype, self.model.specs[name].shape), dtype)

    def constant(self, values: "Callable[[], Tensor]", length: int) -> ir.Value:
        """As many zeros: torch would have to be there to compute the values."""
        return self.graph.constant(np.zeros(length), np.float32)

    def _product(self, value: ir.Value, source: str, name: str, shape: tuple[int, int], has_bias: bool) -> ir.Value:
        scheme, (rows, columns) = self.model.scheme(source), shape
        bias = self._stored(f"{name}.bias", ir.DataType.FLOAT, (rows,)) if has_bias else None
        if isinstance(scheme, IntegerScheme) and self.model.records[source].activation is None:
            return self._blockwise_product(value, name, scheme, shape, bias)
        if isinstance(scheme, IntegerScheme):
            value, factor = self._rounded(value), self._rowwise_factor(name, shape)
        else:
            dtype = self._dtype(source)
            factor = self._float32(self._stored(name, dtype, (columns, rows)), dtype)
        product = self.graph.node("MatMul", value, factor)
        return product if bias is None else self.graph.node("Add", product, bias)

    def _blockwise_product(
        self, value: ir.Value, name: str, scheme: IntegerScheme, shape: tuple[int, int], bias: ir.Value | None
    ) -> ir.Value:
        rows, columns = shape
        block = block_columns(scheme)
        filled = (rows, blocks(scheme, columns), block * scheme.bits // 8)
        inputs = [value, *self._integers(name, scheme, filled, columns), None, bias]
        while inputs[-1] is None:
            inputs.pop()
        settings = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": block}
        return self.graph.contributed("MatMulNBits", *inputs, accuracy_level=ACCURACY_LEVEL, **settings)

    def _rounded(self, value: ir.Value) -> ir.Value:
        """On a grid that calibration will tell; two that turn out alike will share a few bytes."""
        if value.name not in self._on_grids:
            number = len(self._on_grids)
            scale, zero = self.graph.constant(1 + number, np.float32), self.graph.constant(number % 256, np.uint8)
            codes = self.graph.node("QuantizeLinear", value, scale, zero)
            self._on_grids[value.name] = self.graph.node("DequantizeLinear", codes, scale, zero)
        return self._on_grids[value.name]

    def _rowwise_factor(self, name: str, shape: tuple[int, int]) -> ir.Value:
        rows, columns = shape
        codes = self._stored(f"{name}.codes", ir.DataType.INT8, (columns, rows))
        return self.graph.node(
            "DequantizeLinear", codes, self._stored(f"{name}.scales", ir.DataType.FLOAT, (rows,)), axis=1
        )

    def _integers(
        self, name: str, scheme: IntegerScheme, codes: tuple[int, ...], columns: int
    ) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        rows, count = codes[0], blocks(scheme, columns)
        packed = (rows, -(-count * scheme.bits // 8))
        return (
            self._stored(f"{name}.codes", ir.DataType.UINT8, codes),
            self._stored(f"{name}.scales", ir.DataType.FLOAT, (rows, count)),
            None if scheme.symmetric else self._stored(f"{name}.zeros", ir.DataType.UINT8, packed),
        )

    def _stored(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        return self.graph.weight(name, StoredArray(dtype, shape))

    def _float32(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return value if dtype == ir.DataType.FLOAT else self.graph.node("Cast", value, to=ir.DataType.FLOAT)

    def _dtype(self, name: str) -> ir.DataType:
        return FLOATS[str(self.model.scheme(name) or self.model.records[name].dtype)]

    def _shape(self, name: str) -> tuple[int, int]:
        rows, columns = self.model.specs[name].shape
        return (columns, rows) if self.model.specs[name].transposed else (rows, columns)


def _weights(model: Declared, graphs: Sequence[Mapping[str, int]]) -> Iterator[WeightForecast]:
    """Of all weights, from the arrays of every graph; an embedding that is the head too lies in two."""
    held: list[Counter[str]] = []
    for arrays in graphs:
        held.append(Counter())
        for array, size in arrays.items():
            held[-1][_owner(array, model.specs)] += size
    for name in model.specs:
        sizes = [one[name] for one in held if name in one]
        stored_as, reason = _told(model, name, max(sizes, default=0))
        yield WeightForecast(name, stored_as, sum(sizes), "once in each of two graphs" if len(sizes) > 1 else reason)


def _owner(array: str, specs: Mapping[str, TensorSpec]) -> str:
    """The weight whose array this is: `head.scales` is `head`'s, `x.qkv.q.bias` is `x.qkv.bias`'s."""
    stem, _, last = array.rpartition(".")
    kind = ".bias" if last == "bias" else ""
    stem = stem if kind else array
    while stem + kind not in specs:
        stem = stem.rpartition(".")[0]
    return stem + kind


def _told(model: Declared, name: str, nbytes: int) -> tuple[str, str]:
    """What the file holds, and why that is not what the plan says."""
    scheme, spec = model.scheme(name), model.specs[name]
    if not isinstance(scheme, IntegerScheme):
        planned = FLOATS[str(scheme or model.records[name].dtype)]
        stored = ir.DataType.FLOAT if nbytes >= 4 * prod(spec.shape) else planned
        return stored.name.lower(), "" if stored == planned else "ONNX Runtime computes with it in float32"
    if model.records[name].activation:
        return f"{scheme.bits} bits in whole rows, inputs too", ""
    stored_as, width = f"{scheme.bits} bits in blocks of {block_columns(scheme)}", widened_ffn(model)
    if spec.may_grow and stored_shape(spec, width) != spec.shape:
        return stored_as, f"zeros widen the hidden width to {width:,}, for whole blocks"
    return stored_as, "" if scheme.group_size else "blocks repeat the scale of their row"
