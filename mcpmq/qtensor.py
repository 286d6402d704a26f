"""A quantized weight: codes and their grid. The middle of the hourglass: packing bytes is the formats' business."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from mcpmq.scheme import CodebookScheme, GgmlScheme, IntegerScheme


@dataclass(frozen=True, slots=True)
class PackedScale:
    """The scales of a whole weight in 8 bits, the scales of scales beside them, in blocks that run from row to row.

    `codes` uint8 [rows, groups]; `largest` float32 [blocks of 256 codes]; a scale is largest * table[code] + offset.
    """

    codes: Tensor
    largest: Tensor
    offset: float


@dataclass(frozen=True, slots=True)
class QTensor:
    """A matrix [rows = out, columns = in] on a grid; rounding made it, no format changes a code of it.

    Integer grids: `codes` uint8 [rows, columns], unpacked; `scale` float16 [rows, groups], negative where the
    value of largest magnitude is positive (int4 symmetric); `zero` uint8 [rows, groups], None if symmetric (then
    it is 2^(bits-1)). The value of a code is (code - zero) * scale, in fp32. The last group may be ragged.

    Codebooks: `codes` uint8 [rows, columns], unpacked; `scale` float32 [rows, groups] is what `packed_scale` says; the
    value of a code is table[code] * scale.

    ggml grids: `codes` uint8 [rows, bytes of a row], ggml's own blocks, which hold scales and codes together;
    `scale` and `zero` are None. `columns` counts the columns before any padding to whole blocks.
    """

    scheme: IntegerScheme | GgmlScheme | CodebookScheme
    columns: int
    codes: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    packed_scale: PackedScale | None = None  # of a whole weight, not of some of its rows

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def rows_of(self, span: slice) -> Self:
        """Some of the rows; rows share nothing but how their scales are packed, which only the whole has."""
        scale, zero = (None if part is None else part[span] for part in (self.scale, self.zero))
        return replace(self, codes=self.codes[span], scale=scale, zero=zero, packed_scale=None)

    @classmethod
    def stacked(cls, pieces: Iterable[Self], rows: int) -> Self:
        """Pieces of `rows` rows in all, one under the other; only one piece is held beside the result."""
        parts: dict[str, Tensor] = {}
        row = 0
        for piece in pieces:
            for name in ("codes", "scale", "zero"):
                part = getattr(piece, name)
                if part is not None:
                    whole = parts.setdefault(name, torch.empty(rows, part.shape[1], dtype=part.dtype))
                    whole[row : row + piece.rows] = part
            row += piece.rows
        return cls(piece.scheme, piece.columns, parts["codes"], parts.get("scale"), parts.get("zero"))
