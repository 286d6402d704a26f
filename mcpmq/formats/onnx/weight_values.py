"""Load the values of weights and activation grids for an ONNX graph."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.formats.onnx.weight_emitter import TOKEN_INPUT, TokenInput
from mcpmq.formats.padding import pad_weight, stored_shape
from mcpmq.grids import dequantize
from mcpmq.grids.activation import ActivationGrid
from mcpmq.qtensor import IntegerTensor, QTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import TOKENS


@dataclass(frozen=True, slots=True)
class LoadedValues:
    """Read the weights of a quantized model, one at a time."""

    quantized: QuantizedModel

    def codes(self, name: str, shape: tuple[int, int]) -> Iterator[IntegerTensor]:
        """Yield chunks of rows of a quantized weight, or the whole weight if it is padded to `shape`."""
        stored = stored_shape(self.quantized.specs[name])
        is_padded = (stored[0], prod(stored[1:])) != shape
        for chunk in [pad_weight(self.quantized.load(name), shape)] if is_padded else self.quantized.row_chunks(name):
            assert isinstance(chunk, IntegerTensor)
            yield chunk

    def floats(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Load an unquantized weight, or dequantize a quantized one, and pad it to `shape`."""
        weight = self.quantized.load(name)
        padded = pad_weight(dequantize(weight) if isinstance(weight, QTensor) else weight, shape)
        assert isinstance(padded, Tensor)
        return padded

    def activation_grids(self, name: str, inputs: Sequence[ir.Value]) -> Sequence[ActivationGrid | TokenInput]:
        """Return the grids that calibration chose for the inputs of a matrix, or that of tokens."""
        if self.quantized.activation(name) == TOKENS:
            return [TOKEN_INPUT]
        return self.quantized.activation_grids(name)

    def constant(self, compute: Callable[[], Tensor], length: int) -> NDArray[np.float32]:
        """Return float32 [length]."""
        values: NDArray[np.float32] = compute().numpy()
        return values
