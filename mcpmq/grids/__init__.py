"""Quantization grids: the values that a weight on a scheme can have; one module for each kind of scheme."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from mcpmq.grids import codebook, ggml, integer
from mcpmq.grids.levels import Levels
from mcpmq.qtensor import QTensor
from mcpmq.scheme import CodebookScheme, GgmlScheme, GridScheme, IntegerScheme


class Grid(Protocol):
    """The functions that the modules `integer` and `ggml` share.

    A module has its own type for a scheme, for the grid of some columns of a weight, and for the quantized weight.
    """

    def choose_grid(self, weight: Tensor, scheme: Any, importance: Tensor | None = None) -> Any:
        """Choose scales and zero points for a weight [rows, columns]; `importance` float32 [columns] weights errors."""

    def fit_grid(self, weight: Tensor, scheme: Any, importance: Tensor) -> Any:
        """Choose scales and zero points by a finer search, for codes that are chosen afterwards."""

    def quantize(self, weight: Tensor, scheme: Any, importance: Tensor | None = None) -> Any:
        """Round a weight [rows, columns] to nearest on the grid that `choose_grid` chooses."""

    def scale_columns(self, columns: int, scheme: Any) -> int:
        """Return how many of `columns` columns have the same scale."""

    def levels(self, grid: Any, columns: int, scheme: Any) -> Levels:
        """Return the values on the grid of `columns` columns, for rounding one column after another."""

    def concat(self, grids: Sequence[Any]) -> Any:
        """Concatenate the grids of consecutive columns."""

    def rescale(self, grid: Any, scale: Tensor, scheme: Any) -> Any:
        """Return a grid with other scales, float32 [groups, rows], if its levels have fp16 scales; else the same."""

    def assemble(self, grid: Any, codes: Tensor, columns: int, scheme: Any) -> Any:
        """Combine codes uint8 [rows, padded columns] with their grid; padding is dropped."""


GRIDS: dict[type[GridScheme], Grid] = {IntegerScheme: integer, GgmlScheme: ggml}
_DEQUANTIZE: dict[type, Callable[[Any], Tensor]] = {
    IntegerScheme: integer.dequantize,
    GgmlScheme: ggml.dequantize,
    CodebookScheme: codebook.dequantize,
}


def quantize(weight: Tensor, scheme: GridScheme, importance: Tensor | None = None) -> QTensor:
    """Round a weight [rows, columns] to nearest; `importance` float32 [columns] weights the errors of the grid search.

    Raises:
        ScaleError: a scale is too large for fp16.
    """
    quantized: QTensor = GRIDS[type(scheme)].quantize(weight, scheme, importance)
    return quantized


def dequantize(weight: QTensor) -> Tensor:
    """Return the values of a quantized weight: float32 [rows, columns]."""
    return _DEQUANTIZE[type(weight.scheme)](weight)
