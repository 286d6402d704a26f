"""What a graph computes with: the weights of a model as the emitters of graphs ask for them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

if TYPE_CHECKING:  # a forecast emits graphs without torch
    from torch import Tensor


class Weights(Protocol):
    """Weights of a model, put into a graph one at a time; they are read, or merely counted."""

    def has(self, name: str) -> bool:
        """Whether the model has a weight."""

    def linear(self, value: ir.Value, name: str) -> ir.Value:
        """Float32 [..., columns] times a matrix [rows, columns], plus its bias where it has one: [..., rows].

        All axes of a kernel but the first are its columns.
        """

    def linear_parts(self, values: Sequence[ir.Value], name: str, parts: str) -> tuple[ir.Value, ...]:
        """The same with equal shares of the rows of a matrix that has a bias, each for a value of its own."""

    def lookup(self, name: str, indices: ir.Value) -> ir.Value:
        """Rows of a table [rows, columns] at int64 indices [...]: float32 [..., columns]."""

    def vector(self, name: str) -> ir.Value:
        """A bias or the scale of a norm, as float32 whatever its dtype was."""

    def array(self, name: str) -> ir.Value:
        """An array of any shape that nothing quantizes: float32."""

    def constant(self, values: "Callable[[], Tensor]", length: int) -> ir.Value:
        """Float32 [length] that torch computes as the native module does."""
