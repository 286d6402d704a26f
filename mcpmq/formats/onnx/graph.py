"""A pen for ONNX graphs: inputs, constants, nodes and outputs, in the order in which they are computed."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mcpmq.formats.onnx.external_data import Data, StoredArray

OPSET = 23  # the first with RMSNormalization
IR_VERSION = 10
ACCURACY_LEVEL = 4  # of MatMulNBits: activations rounded to 8 bits, what phones compute fast; 0 rounds none
CONTRIBUTED = "com.microsoft"  # ONNX Runtime's own operators
Axes = list[int | str]


class Graph:
    """One graph being written. Weights go to its external data at once; constants stay inside the graph."""

    def __init__(self, name: str, data: Data) -> None:
        self._graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, CONTRIBUTED: 1})
        self.data = data
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._nodes = 0

    def input(self, name: str, dtype: ir.DataType, axes: Axes) -> ir.Value:
        """An input; axes that vary are named."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(axes))
        self._graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, axes: Axes) -> None:
        """Make a value an output, under this name."""
        value.name, value.dtype, value.shape = name, dtype, ir.Shape(axes)
        self._graph.outputs.append(value)

    def constant(self, value: ArrayLike, dtype: DTypeLike = np.int64) -> ir.Value:
        """A small constant; equal ones are one."""
        array: NDArray[Any] = np.asarray(value, dtype)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._initializer(name, ir.Tensor(array, name=name))
        return self._constants[key]

    def weight(self, name: str, array: StoredArray) -> ir.Value:
        """A weight, written to the external data."""
        return self._initializer(name, self.data.append(name, array))

    def _initializer(self, name: str, tensor: ir.Tensor[Any] | ir.ExternalTensor) -> ir.Value:
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        self._graph.register_initializer(value)
        return value

    def node(self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node with one output."""
        return self.nodes(operator, *inputs, outputs=1, domain=domain, **attributes)[0]

    def nodes(
        self, operator: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Append a node with several outputs."""
        self._nodes += 1
        name = f"{operator}_{self._nodes}"
        node = ir.node(operator, inputs, attributes=attributes, domain=domain, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}.{index}"
        self._graph.append(node)
        return tuple(node.outputs)

    def contributed(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node of ONNX Runtime's own with one output."""
        return self.node(operator, *inputs, domain=CONTRIBUTED, **attributes)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Length of one axis: int64 scalar."""
        return self.node("Squeeze", self.node("Shape", value, start=axis, end=axis + 1))

    def save(self, path: Path, version: str, properties: dict[str, str]) -> None:
        """Write the graph beside its external data, which it refers to by name."""
        model = ir.Model(self._graph, ir_version=IR_VERSION, producer_name="mcpmq", producer_version=version)
        model.metadata_props.update(properties)
        ir.save(model, path)
