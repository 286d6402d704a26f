"""Schemes: how the numbers of one weight are stored."""

import re
from dataclasses import dataclass

from mcpmq.errors import RecipeError

GROUP_SIZES = (16, 32, 64, 128, 256)
# Weights in a block and bytes of a block, as ggml lays them out (ggml-common.h).
GGML_BLOCKS = {
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "iq4_nl": (32, 18),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
CODEBOOKS, CODEBOOK_COLUMNS = ("nf4", "fp4"), 64  # bitsandbytes' grids, and the columns that share a scale
FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class IntegerScheme:
    """Integers of 4 or 8 bits, one fp16 scale a group: written `int4-g32`, `int8-row`, `int4-g64-asym`."""

    bits: int
    group_size: int | None  # columns that share a scale; None: the whole row
    symmetric: bool = True

    def __str__(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        return f"int{self.bits}-{group}" + ("" if self.symmetric else "-asym")

    def groups(self, columns: int) -> int:
        return -(-columns // self.group_size) if self.group_size else 1

    def row_nbytes(self, columns: int) -> int:
        scale_bytes = 2 * self.groups(columns)
        zero_bits = 0 if self.symmetric else self.bits * self.groups(columns)
        return -(-columns * self.bits // 8) + scale_bytes + -(-zero_bits // 8)


@dataclass(frozen=True, slots=True)
class GgmlScheme:
    """One of ggml's block types: written `q8_0`, `q4_k`."""

    type: str

    def __str__(self) -> str:
        return self.type

    @property
    def block_columns(self) -> int:
        return GGML_BLOCKS[self.type][0]

    def row_nbytes(self, columns: int) -> int:
        block, nbytes = GGML_BLOCKS[self.type]
        return -(-columns // block) * nbytes


@dataclass(frozen=True, slots=True)
class CodebookScheme:
    """One of bitsandbytes' sets of sixteen values, with double quantization: written `nf4`, `fp4`."""

    name: str

    def __str__(self) -> str:
        return self.name

    def row_nbytes(self, columns: int) -> int:
        return (
            columns // 2 + columns // CODEBOOK_COLUMNS
        )  # 4 bits a weight, 8 a scale; what scales share is next to none


@dataclass(frozen=True, slots=True)
class FloatScheme:
    """Another floating-point type, converted and otherwise untouched: written `f16`."""

    dtype: str

    def __str__(self) -> str:
        return self.dtype

    def row_nbytes(self, columns: int) -> int:
        return columns * FLOAT_BYTES[self.dtype]


Scheme = IntegerScheme | GgmlScheme | CodebookScheme | FloatScheme


def parse_scheme(text: str) -> Scheme | None:
    """Read a scheme as it is written in a recipe; `keep` is None.

    Raises:
        RecipeError: the text names no scheme.
    """
    if text == "keep":
        return None
    if text in GGML_BLOCKS:
        return GgmlScheme(text)
    if text in CODEBOOKS:
        return CodebookScheme(text)
    if text in FLOAT_BYTES:
        return FloatScheme(text)
    return _parse_integer(text)


def _parse_integer(text: str) -> IntegerScheme:
    found = re.fullmatch(r"int([48])-(?:g(\d+)|row)(-asym)?", text)
    if not found or (found[2] and int(found[2]) not in GROUP_SIZES):
        names = ", ".join([*GGML_BLOCKS, *CODEBOOKS, *FLOAT_BYTES])
        raise RecipeError(
            f"`{text}` is not a scheme",
            f"write `int4` or `int8` with `-row` or `-g` and one of {', '.join(map(str, GROUP_SIZES))},"
            f" with `-asym` if zero points are wanted; or one of: {names}, keep",
        )
    return IntegerScheme(int(found[1]), int(found[2]) if found[2] else None, not found[3])
