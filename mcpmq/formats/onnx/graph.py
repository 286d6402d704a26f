"""Builder of ONNX graphs: inputs, constants, weights, nodes and outputs, in execution order."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mcpmq.formats.onnx.external_data import DataSink, StoredArray

OPSET = 23  # the first with RMSNormalization
IR_VERSION = 10
CONTRIB_DOMAIN = "com.microsoft"  # ONNX Runtime's own operators
Axes = list[int | str]


class Graph:
    """One graph under construction. Weights go to its data sink immediately; constants stay in the graph."""

    def __init__(self, name: str, data: DataSink) -> None:
        self._graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, CONTRIB_DOMAIN: 1})
        self.data = data
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._nodes = 0

    def input(self, name: str, dtype: ir.DataType, axes: Axes) -> ir.Value:
        """Add an input; dynamic axes have names."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(axes))
        self._graph.inputs.append(value)
        return value

    def optional_input(self, name: str, axes: Axes, default: NDArray[Any]) -> ir.Value:
        """Add an input with a value that it has if a caller gives none."""
        tensor = ir.Tensor(default, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(axes))
        self._graph.inputs.append(value)
        self._graph.register_initializer(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, axes: Axes) -> None:
        """Make a value an output with this name."""
        value.name, value.dtype, value.shape = name, dtype, ir.Shape(axes)
        self._graph.outputs.append(value)

    def constant(self, value: ArrayLike, dtype: DTypeLike = np.int64) -> ir.Value:
        """Return a small constant; equal constants are stored once."""
        array: NDArray[Any] = np.asarray(value, dtype)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._initializer(name, ir.Tensor(array, name=name))
        return self._constants[key]

    def weight(self, name: str, array: StoredArray) -> ir.Value:
        """Append a weight to the data sink."""
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

    def contrib_node(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a contrib operator of ONNX Runtime with one output."""
        return self.node(operator, *inputs, domain=CONTRIB_DOMAIN, **attributes)

    def axis_length(self, value: ir.Value, axis: int) -> ir.Value:
        """Return the length of an axis: int64 scalar."""
        return self.node("Squeeze", self.node("Shape", value, start=axis, end=axis + 1))

    def save(self, path: Path, version: str, properties: dict[str, str]) -> None:
        """Write the graph beside its external data files, which it references by name."""
        model = ir.Model(self._graph, ir_version=IR_VERSION, producer_name="mcpmq", producer_version=version)
        model.metadata_props.update(properties)
        ir.save(model, path)
