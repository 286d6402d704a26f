"""Quantized weights in memory: codes and the grid that gives their values, independent of any file format.

Rounding methods produce them, formats pack them into bytes, and no format changes a code.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcpmq.scheme import CodebookScheme, GgmlScheme, IntegerScheme


@dataclass(frozen=True, slots=True)
class IntegerTensor:
    """A matrix [rows = out, columns = in] on an integer grid; a code has the value (code - zero point) * scale.

    codes: uint8 [rows, columns], one code per byte. scale: float16 [rows, groups]; with a negative divisor (4 bits) it
    is negative where the value of largest magnitude is positive. zero_point: uint8 [rows, groups], or None if the
    scheme is symmetric (`scheme.zero_point`). The last group may be smaller. Values are computed in float32.
    """

    scheme: IntegerScheme
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        return self.codes.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def slice_rows(self, rows: slice | Tensor) -> "IntegerTensor":
        """Return some of the rows; rows are independent."""
        zero_point = None if self.zero_point is None else self.zero_point[rows]
        return IntegerTensor(self.scheme, self.codes[rows], self.scale[rows], zero_point)


@dataclass(frozen=True, slots=True)
class GgmlTensor:
    """A matrix [rows = out, columns = in] in blocks of ggml, which hold scales and codes together.

    blocks: uint8 [rows, bytes of a row]. columns: without the padding to whole blocks.
    """

    scheme: GgmlScheme
    columns: int
    blocks: Tensor

    @property
    def rows(self) -> int:
        return self.blocks.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def slice_rows(self, rows: slice | Tensor) -> "GgmlTensor":
        """Return some of the rows; rows are independent."""
        return GgmlTensor(self.scheme, self.columns, self.blocks[rows])


@dataclass(frozen=True, slots=True)
class DoubleQuantScale:
    """The scales of a whole weight in 8 bits (double quantization), in blocks of 256 that continue from row to row.

    codes: uint8 [rows, groups]. absmax: float32 [blocks]. The value of a code is absmax * dynamic_map[code] + offset.
    """

    codes: Tensor
    absmax: Tensor
    offset: float


@dataclass(frozen=True, slots=True)
class CodebookTensor:
    """A matrix [rows = out, columns = in] on a codebook of sixteen values; a code has the value table[code] * scale.

    codes: uint8 [rows, columns], one code per byte. scale: float32 [rows, groups], dequantized. double_quant: the
    scales as they are stored; None for some rows of a weight.
    """

    scheme: CodebookScheme
    codes: Tensor
    scale: Tensor
    double_quant: DoubleQuantScale | None = None

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def columns(self) -> int:
        return self.codes.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def slice_rows(self, rows: slice | Tensor) -> "CodebookTensor":
        """Return some of the rows, without the stored form of their scales."""
        return CodebookTensor(self.scheme, self.codes[rows], self.scale[rows])


QTensor = IntegerTensor | GgmlTensor | CodebookTensor

AnyQTensor = TypeVar("AnyQTensor", IntegerTensor, GgmlTensor, CodebookTensor, QTensor)
ROW_FIELDS = ("codes", "blocks", "scale", "zero_point")


def move(weight: AnyQTensor, device: torch.device) -> AnyQTensor:
    """Return a weight with its tensors on a device."""
    parts = {name: getattr(weight, name, None) for name in ROW_FIELDS}
    return replace(weight, **{name: part.to(device) for name, part in parts.items() if part is not None})


def row_device(weight: QTensor) -> torch.device:
    """Return the device of a weight."""
    device: torch.device = (weight.blocks if isinstance(weight, GgmlTensor) else weight.codes).device
    return device


def concat_rows(chunks: Iterable[AnyQTensor], rows: int) -> AnyQTensor:
    """Concatenate chunks that have `rows` rows in total; only one chunk is in memory beside the result."""
    parts: dict[str, Any] = {}
    first_row = 0
    for chunk in chunks:
        for name in ROW_FIELDS:
            part = getattr(chunk, name, None)
            if part is not None:
                whole = parts.setdefault(name, torch.empty(rows, part.shape[1], dtype=part.dtype, device=part.device))
                whole[first_row : first_row + chunk.rows] = part
        first_row += chunk.rows
    return replace(chunk, **parts)
