"""Schemes: how the numbers of one weight are stored, written `int4-g64`, `q4_k`, `nf4` or `f16`."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from mcpmq.errors import RecipeError

ScaleSearch = Literal["mcpmq", "ggml"]
CHOICE = " or "  # between the schemes of a choice
GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class SymmetricRange:
    """The codes of a symmetric integer grid of one bit width, and the divisor that gives its scale.

    The scale of a group is its largest magnitude over `scale_divisor`. With a negative divisor the magnitude keeps its
    sign, so that the value of largest magnitude always gets the lowest code.
    """

    qmin: int
    scale_divisor: int


# The bit widths of integer schemes. 4 bits: codes 0..15 around 8, as ggml's Q4_0 and ONNX Runtime's MatMulNBits.
# 8 bits: codes 1..255 around 128, as ggml's Q8_0.
SYMMETRIC_RANGES = {4: SymmetricRange(qmin=0, scale_divisor=-8), 8: SymmetricRange(qmin=1, scale_divisor=127)}

# Columns and bytes of one block (ggml-common.h).
GGML_BLOCKS = {
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "iq4_nl": (32, 18),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
    "iq4_xs": (256, 136),
    "q3_k": (256, 110),
    "q2_k": (256, 84),
    "iq3_s": (256, 110),
}
VECTOR_COLUMNS = {"iq3_s": 4}  # columns whose magnitudes are one entry of a table, in types that have one
CODEBOOKS, CODEBOOK_GROUP_SIZE = ("nf4", "fp4"), 64  # the 4-bit data types of bitsandbytes, and their block size
FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class IntegerScheme:
    """Integer codes with one fp16 scale per group of columns: written `int4-g32`, `int8-row`, `int4-g64-asym`.

    A code is unsigned, from `qmin` to `qmax`; its value is (code - zero point) * scale. A symmetric scheme has the same
    `zero_point` in every group, an asymmetric one stores a zero point per group.

    Raises:
        RecipeError: the bit width is not in `SYMMETRIC_RANGES`.
    """

    is_quantized: ClassVar[bool] = True
    column_multiple: ClassVar[int] = 1  # the last group may be smaller
    vector_columns: ClassVar[int] = 1  # every column has a code of its own

    bits: int
    group_size: int | None  # columns that share a scale; None: the whole row
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in SYMMETRIC_RANGES:
            raise RecipeError(f"integers of {self.bits} bits are not supported", f"use one of: {_bit_widths()}")

    def __str__(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"int{self.bits}-{group}" + ("" if self.symmetric else "-asym")

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return SYMMETRIC_RANGES[self.bits].qmin if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1

    @property
    def zero_point(self) -> int:
        """The code of zero in a symmetric scheme."""
        return 1 << (self.bits - 1)

    @property
    def scale_divisor(self) -> int:
        """Scale = range / divisor. Symmetric: the range is the largest magnitude; asymmetric: maximum - minimum."""
        return SYMMETRIC_RANGES[self.bits].scale_divisor if self.symmetric else self.qmax

    def group_columns(self, columns: int) -> int:
        """Return how many columns share a scale in a weight of `columns` columns."""
        return self.group_size or columns

    def num_groups(self, columns: int) -> int:
        """Return the groups in a row; the last one may be smaller."""
        return -(-columns // self.group_size) if self.group_size else 1

    def padded_columns(self, columns: int) -> int:
        """Return the columns that are stored: integer codes need no padding."""
        return columns

    def row_nbytes(self, columns: int) -> int:
        """Return the bytes of a row: codes, scales and zero points, each in whole bytes."""
        scale_bytes = 2 * self.num_groups(columns)
        zero_bits = 0 if self.symmetric else self.bits * self.num_groups(columns)
        return -(-columns * self.bits // 8) + scale_bytes + -(-zero_bits // 8)


@dataclass(frozen=True, slots=True)
class GgmlScheme:
    """A block type of ggml: written `q8_0`, `q4_k`.

    search: the implementation that chooses the scales, `mcpmq` or `ggml`; both write the same layout.
    """

    is_quantized: ClassVar[bool] = True

    name: str
    search: ScaleSearch = "mcpmq"

    def __str__(self) -> str:
        return self.name

    @property
    def block_columns(self) -> int:
        """Columns in one block."""
        return GGML_BLOCKS[self.name][0]

    @property
    def vector_columns(self) -> int:
        """Columns whose codes are chosen together."""
        return VECTOR_COLUMNS.get(self.name, 1)

    @property
    def column_multiple(self) -> int:
        """A row is stored in whole blocks."""
        return self.block_columns

    def group_columns(self, columns: int) -> int:
        """Return how many columns get their scales together: a block."""
        return self.block_columns

    def padded_columns(self, columns: int) -> int:
        """Return the columns that are stored: whole blocks."""
        return -(-columns // self.block_columns) * self.block_columns

    def row_nbytes(self, columns: int) -> int:
        """Return the bytes of a row, padded to whole blocks."""
        block, nbytes = GGML_BLOCKS[self.name]
        return -(-columns // block) * nbytes


@dataclass(frozen=True, slots=True)
class CodebookScheme:
    """A 4-bit data type of bitsandbytes with double quantization (QLoRA, arXiv 2305.14314): written `nf4`, `fp4`."""

    is_quantized: ClassVar[bool] = True
    column_multiple: ClassVar[int] = CODEBOOK_GROUP_SIZE
    bits: ClassVar[int] = 4

    name: str

    def __str__(self) -> str:
        return self.name

    def row_nbytes(self, columns: int) -> int:
        """Return the bytes of a row: 4 bits per weight and 8 per scale; the scales of the scales are negligible."""
        return columns // 2 + columns // CODEBOOK_GROUP_SIZE


@dataclass(frozen=True, slots=True)
class FloatScheme:
    """Another floating-point type, to which the weight is converted: written `f16`."""

    is_quantized: ClassVar[bool] = False
    column_multiple: ClassVar[int] = 1

    dtype: str

    def __str__(self) -> str:
        return self.dtype

    def row_nbytes(self, columns: int) -> int:
        """Return the bytes of a row."""
        return columns * FLOAT_BYTES[self.dtype]


GridScheme = IntegerScheme | GgmlScheme
"""Schemes that GPTQ and rtn-imatrix support; codebook schemes support round-to-nearest only."""

Scheme = IntegerScheme | GgmlScheme | CodebookScheme | FloatScheme


@dataclass(frozen=True, slots=True)
class SchemeChoice:
    """Schemes of which a weight gets the first whose blocks divide its columns: written `q4_k or iq4_nl`.

    Raises:
        RecipeError: a scheme can never be chosen, because the blocks of an earlier one divide all its widths.
    """

    schemes: tuple[Scheme, ...]

    def __post_init__(self) -> None:
        for first, second in pairwise(self.schemes):
            if first.column_multiple <= second.column_multiple:
                multiple = first.column_multiple
                raise RecipeError(
                    f"`{self}` never gives `{second}`: `{first}` fits every multiple of {multiple} columns",
                    "order schemes from large to small blocks: `q4_k or iq4_nl`",
                )

    def __str__(self) -> str:
        return CHOICE.join(map(str, self.schemes))

    def for_columns(self, columns: int) -> Scheme:
        """Return the scheme of a weight with `columns` columns; the last one if none fits."""
        return next((one for one in self.schemes if columns % one.column_multiple == 0), self.schemes[-1])


SchemeRequest = Scheme | SchemeChoice | None
"""The text of a recipe's line: one scheme, a choice by width, or None to keep the dtype."""

NAMED_SCHEMES: dict[str, Scheme] = {
    **{name: GgmlScheme(name) for name in GGML_BLOCKS},
    **{name: CodebookScheme(name) for name in CODEBOOKS},
    **{dtype: FloatScheme(dtype) for dtype in FLOAT_BYTES},
}


def parse_scheme(text: str) -> Scheme | None:
    """Parse a scheme from its text in a recipe; `keep` gives None.

    Raises:
        RecipeError: the text is not a scheme.
    """
    if text == "keep":
        return None
    return NAMED_SCHEMES.get(text) or _parse_integer(text)


def parse_request(text: str) -> SchemeRequest:
    """Parse the text of a recipe's line: a scheme, several joined by `or`, or `keep`.

    Raises:
        RecipeError: the text, or a part of it, is not a scheme.
    """
    parts = text.split(CHOICE)
    if len(parts) == 1:
        return parse_scheme(text)
    schemes = tuple(scheme for scheme in map(parse_scheme, parts) if scheme is not None)
    if len(schemes) < len(parts):
        raise RecipeError(f"`{text}` has `keep` among its schemes", "name a scheme of small blocks: `q4_k or q8_0`")
    return SchemeChoice(schemes)


def requested_schemes(request: SchemeRequest) -> tuple[Scheme, ...]:
    """Return all schemes that a recipe's line may give."""
    if isinstance(request, SchemeChoice):
        return request.schemes
    return () if request is None else (request,)


def _parse_integer(text: str) -> IntegerScheme:
    found = re.fullmatch(r"int(\d)-(?:g(\d+)|row)(-asym)?", text)
    if not found or int(found[1]) not in SYMMETRIC_RANGES or (found[2] and int(found[2]) not in GROUP_SIZES):
        raise RecipeError(
            f"`{text}` is not a scheme",
            f"use {_bit_widths()} with `-row`, or with `-g` and a group size of {', '.join(map(str, GROUP_SIZES))};"
            f" add `-asym` for zero points; or one of: {', '.join(NAMED_SCHEMES)}, keep",
        )
    return IntegerScheme(int(found[1]), int(found[2]) if found[2] else None, not found[3])


def _bit_widths() -> str:
    return " or ".join(f"`int{bits}`" for bits in SYMMETRIC_RANGES)
